// Reads {document, messages: [{channel, name, payload}]} from standard input; prints {diagnostics, refused} as JSON:
// what the AsyncAPI parser has against the document, and which messages do not fit it.
import { readFileSync } from 'node:fs';
import { Parser } from '@asyncapi/parser';
import AsyncApiValidator from 'asyncapi-validator';

const { document, messages } = JSON.parse(readFileSync(0, 'utf8'));
const { diagnostics } = await new Parser().parse(JSON.stringify(document));
const validator = await AsyncApiValidator.fromSource(document, { msgIdentifier: 'name' });
const refused = [];
for (const { channel, name, payload } of messages) {
  try {
    validator.validate(name, payload, channel, 'send');
  } catch (error) {
    refused.push({ name, message: error.message });
  }
}
const found = diagnostics.map(({ severity, code, message, path }) => ({ severity, code, message, path }));
process.stdout.write(JSON.stringify({ diagnostics: found, refused }));
