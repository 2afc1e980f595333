// A service that calls whence below a span of its own: node service.js TARGET OTLP PROTO
// It prints the trace's id. `make node` installs what it needs.
'use strict';
const { registerInstrumentations } = require('@opentelemetry/instrumentation');
const { GrpcInstrumentation } = require('@opentelemetry/instrumentation-grpc');
const { NodeTracerProvider } = require('@opentelemetry/sdk-trace-node');
const { SimpleSpanProcessor } = require('@opentelemetry/sdk-trace-base');
const { OTLPTraceExporter } = require('@opentelemetry/exporter-trace-otlp-http');
const { resourceFromAttributes } = require('@opentelemetry/resources');

const [target, otlp, proto] = process.argv.slice(2);
const provider = new NodeTracerProvider({
  resource: resourceFromAttributes({ 'service.name': 'shop' }),
  spanProcessors: [new SimpleSpanProcessor(new OTLPTraceExporter({ url: otlp }))],
});
provider.register();
// Before grpc-js is loaded, which it changes.
registerInstrumentations({ instrumentations: [new GrpcInstrumentation()] });
const grpc = require('@grpc/grpc-js');
const { loadSync } = require('@grpc/proto-loader');

const files = loadSync('whence/v1/generation.proto', { includeDirs: [proto] });
const { GenerationService } = grpc.loadPackageDefinition(files).whence.v1;
const client = new GenerationService(target, grpc.credentials.createInsecure());
provider.getTracer('program').startActiveSpan('work', (span) => {
  const stream = client.Generate({ prompt: 'The quick', decoding: { maxNewTokens: 3 } });
  stream.on('data', () => {});
  stream.on('error', (error) => {
    console.error(error.message);
    process.exitCode = 1;
  });
  stream.on('status', async () => {
    span.end();
    client.close();
    await provider.shutdown();
    console.log(span.spanContext().traceId);
  });
});
