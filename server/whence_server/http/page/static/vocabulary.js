// Texts of token ids, from the bytes that the server has of each.

/** The tokens of one tokenizer. */
export class Vocabulary {
  /** Takes tokens as base64, by id. */
  constructor(tokens) {
    this.tokens = tokens;
  }

  bytesOf(id) {
    const binary = atob(this.tokens[id] ?? "");
    return Uint8Array.from(binary, (one) => one.charCodeAt(0));
  }

  /** The token as readable text; bytes that are no text are named: "<0xF0 0x9F>". */
  textOf(id) {
    const bytes = this.bytesOf(id);
    try {
      return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    } catch {
      return nameFragments(bytes);
    }
  }

  /** Each token's text in a row of tokens; a character belongs to the token that completes it. */
  textsOf(ids) {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    return ids.map((id) => decoder.decode(this.bytesOf(id), { stream: true }));
  }
}

/** Text with the bytes in it that are no text named. */
function nameFragments(bytes) {
  let text = "";
  let broken = [];
  const end = () => {
    if (broken.length) text += `<${broken.map(nameByte).join(" ")}>`;
    broken = [];
  };
  for (let at = 0; at < bytes.length; ) {
    const length = lengthOfCharacter(bytes, at);
    if (length) {
      end();
      text += new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes.slice(at, at + length));
      at += length;
    } else {
      broken.push(bytes[at]);
      at += 1;
    }
  }
  end();
  return text;
}

function nameByte(byte) {
  return `0x${byte.toString(16).toUpperCase().padStart(2, "0")}`;
}

/** The number of bytes of the character that begins here; 0 if none does. */
function lengthOfCharacter(bytes, at) {
  for (let length = 1; length <= 4 && at + length <= bytes.length; length += 1) {
    try {
      new TextDecoder("utf-8", { fatal: true }).decode(bytes.slice(at, at + length));
      return length;
    } catch {
      // Not yet, or never.
    }
  }
  return 0;
}
