// Asks for one chat completion, whole and streamed, by OpenAI's own client; prints both as JSON.
// node FILE BASE_URL

const OpenAI = require("openai");

async function ask(baseURL) {
  const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
  const settings = {
    model: "smol",
    messages: [{ role: "user", content: [{ type: "text", text: "What is the capital of France?" }] }],
    max_completion_tokens: 12,
    seed: 5,
    logprobs: true,
    top_logprobs: 2,
  };
  const whole = await client.chat.completions.create(settings);
  const stream = await client.chat.completions.create({ ...settings, stream: true });
  let text = "";
  let finishReason = null;
  const tokens = [];
  for await (const { choices } of stream) {
    const [choice] = choices;
    text += choice.delta.content ?? "";
    tokens.push(...(choice.logprobs?.content ?? []));
    finishReason = choice.finish_reason ?? finishReason;
  }
  const refused = await client.chat.completions
    .create({ ...settings, temperature: 9 })
    .then(() => null, (error) => ({ status: error.status, param: error.param, type: error.type }));
  console.log(JSON.stringify({ whole, text, finishReason, tokens, refused }));
}

ask(process.argv[2]);
