/** A web server on loopback whose every answer is the test's. */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

export interface Heard {
  method: string;
  path: string;
  headers: IncomingMessage['headers'];
  body: Buffer;
}

export interface WebServer {
  url: string;
  heard: Heard[];
  close(): Promise<void>;
}

export type Answerer = (request: Heard, response: ServerResponse, count: number) => void | Promise<void>;

/** `count` is how many requests came before. */
export const serve = async (answer: Answerer): Promise<WebServer> => {
  const heard: Heard[] = [];
  const server = createServer((request, response) => {
    const parts: Buffer[] = [];
    request.on('data', (part: Buffer) => parts.push(part));
    request.on('end', () => {
      const { method = '', url: path = '', headers } = request;
      const one = { method, path, headers, body: Buffer.concat(parts) };
      heard.push(one);
      void Promise.resolve(answer(one, response, heard.length - 1)).catch((error) => response.destroy(error));
    });
    request.on('error', () => undefined);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    heard,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
};

/** Bytes as a well-behaved server sends them: with ranges, and one ETag for one content. */
export const sendFile = ({ headers }: Heard, response: ServerResponse, content: Buffer, etag = '"one"'): void => {
  const [, first = '0', last = ''] = /^bytes=(\d+)-(\d*)$/.exec(headers.range ?? '') ?? [];
  const from = Number(first);
  const to = last === '' ? content.length : Math.min(Number(last) + 1, content.length);
  const wanted = headers.range !== undefined && (headers['if-range'] ?? etag) === etag;
  if (wanted && from >= content.length) {
    response.writeHead(416, { 'content-range': `bytes */${content.length}` }).end();
    return;
  }
  const part = wanted ? content.subarray(from, to) : content;
  const range = { 'content-range': `bytes ${from}-${to - 1}/${content.length}` };
  response.writeHead(wanted ? 206 : 200, { 'content-length': part.length, etag, ...(wanted ? range : {}) });
  response.end(part);
};
