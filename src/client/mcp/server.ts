/** The MCP server: the tools over standard input and output, or over streamable HTTP. It keeps no state; the daemon has it all. */
import { createServer, type Server } from 'node:http';
import { localhostHostValidation, localhostOriginValidation, toNodeHandler } from '@modelcontextprotocol/node';
import { createMcpHandler, McpServer } from '@modelcontextprotocol/server';
import { serveStdio } from '@modelcontextprotocol/server/stdio';
import type { Controller } from '../controller.js';
import { registerTools } from './tools.js';

export interface McpOptions {
  controller: Controller;
  version: string;
  onProblem: (reason: string) => void;
}

const INSTRUCTIONS =
  'forkd runs sandboxes that are microVMs, forked in milliseconds from a warm snapshot. Spawn one with spawn_sandboxes, run code in it with ' +
  'eval_code (Python) or exec_command, branch_sandbox to try several ways from one state, and kill_sandbox when done.';

const serverOf =
  ({ controller, version }: McpOptions) =>
  (): McpServer => {
    const server = new McpServer({ name: 'forkd', version }, { instructions: INSTRUCTIONS });
    registerTools(server, controller);
    return server;
  };

/** Serves until standard input ends. */
export const serveOnStdio = async (options: McpOptions): Promise<void> => {
  const ended = new Promise<void>((resolve) => process.stdin.once('end', resolve).once('close', resolve));
  const served = serveStdio(serverOf(options), { onerror: (error) => options.onProblem(error.message) });
  await ended;
  await served.close();
};

/** The path that is served; the usual one. */
export const MCP_PATH = '/mcp';

/**
 * Serves on a loopback address, to local programs only: a request with another Host, or from a page of another origin, is refused, since
 * whoever reaches it has the daemon's token. Resolves when it listens; throws what listening throws.
 */
export const serveOnHttp = async (options: McpOptions, bind: { host: string; port: number }): Promise<Server> => {
  const handler = createMcpHandler(serverOf(options), { onerror: (error) => options.onProblem(error.message) });
  const handle = toNodeHandler(handler);
  const [rightHost, rightOrigin] = [localhostHostValidation(), localhostOriginValidation()];
  const server = createServer((request, response) => {
    if (!rightHost(request, response) || !rightOrigin(request, response)) return;
    if (new URL(request.url ?? '', 'http://localhost').pathname !== MCP_PATH) {
      response.writeHead(404).end();
      return;
    }
    // As Node always has it; its types say that a request might have no method.
    void handle(request as Parameters<typeof handle>[0], response);
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(bind.port, bind.host, resolve);
  });
  return server;
};
