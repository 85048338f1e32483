/** Answers and requests, held against the daemon's OpenAPI document. */
import { Ajv2020, type ValidateFunction } from 'ajv/dist/2020.js';

// biome-ignore lint/suspicious/noExplicitAny: a document is walked by keys that it may have or not
type Json = any;

export interface Operation {
  method: string;
  /** With `{name}` where a request has a value. */
  path: string;
  spec: Json;
}

export class Api {
  readonly operations: Operation[];
  readonly #ajv = new Ajv2020({ strict: false, allErrors: true });
  readonly #document: Json;
  readonly #compiled = new Map<string, ValidateFunction>();

  constructor(document: Json) {
    this.#document = strict(structuredClone(document));
    this.#ajv.addSchema(this.#document, 'api');
    this.operations = Object.entries(document.paths).flatMap(([path, methods]) =>
      Object.entries(methods as object).map(([method, spec]) => ({ method: method.toUpperCase(), path, spec })),
    );
  }

  /** The operation of a request, or undefined when the document has none. */
  find(method: string, url: string): Operation | undefined {
    const path = url.split('?', 1)[0] ?? url;
    return this.operations.find(
      (one) => one.method === method && new RegExp(`^${one.path.replace(/\{\w+\}/g, '[^/]+')}$`).test(path),
    );
  }

  /** Why the document does not allow this answer; empty when it does. */
  answerProblems(method: string, url: string, status: number, body: unknown): string[] {
    const found = this.find(method, url);
    const known = found?.spec.responses[status] ?? (status >= 400 ? errorResponse(this.#document) : undefined);
    if (!known) return [`${method} ${url}: the document has no answer ${status}`];
    const schema = known.content?.['application/json']?.schema;
    if (!schema) return body === undefined || known.content ? [] : [`${method} ${url} ${status}: a body`];
    return this.#problems(schema, body, `${method} ${url} ${status}`);
  }

  /** Why the document does not allow this request. */
  requestProblems(method: string, url: string, body: unknown): string[] {
    const found = this.find(method, url);
    if (!found) return [`${method} ${url}: the document has no such operation`];
    const allowed = (found.spec.parameters ?? []).map(({ name }: { name: string }) => name);
    const unknown = [...new URL(url, 'http://x').searchParams.keys()].filter((name) => !allowed.includes(name));
    if (unknown.length > 0) return [`${method} ${url}: the document has no ${unknown.join(', ')}`];
    const schema = found.spec.requestBody?.content['application/json']?.schema;
    if (!schema) return body === undefined ? [] : [`${method} ${url}: the document has no body`];
    return this.#problems(strict(structuredClone(schema)), body, `${method} ${url}`);
  }

  #problems(schema: Json, body: unknown, what: string): string[] {
    const key = JSON.stringify(schema).replaceAll('"#/', '"api#/');
    const validate = this.#compiled.get(key) ?? this.#ajv.compile(JSON.parse(key));
    this.#compiled.set(key, validate);
    return validate(body) ? [] : [`${what}: ${this.#ajv.errorsText(validate.errors)} in ${JSON.stringify(body)}`];
  }
}

const errorResponse = (document: Json): Json => ({
  content: { 'application/json': { schema: { $ref: '#/components/schemas/Error' } } },
  document,
});

/** Keys that the document does not name count as wrong: a client could not know of them. */
const strict = (node: Json): Json => {
  if (node === null || typeof node !== 'object') return node;
  if (node.type === 'object' && node.properties && node.additionalProperties === undefined)
    node.additionalProperties = false;
  for (const value of Object.values(node)) strict(value);
  return node;
};
