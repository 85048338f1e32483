import type { AddressInfo } from 'node:net';
import { isLoopback, parseBind } from '../../main/daemon/bind.js';
import { VERSION } from '../../main/version.js';
import { controllerOf, daemonOptions } from '../ask-daemon.js';
import type { Command } from '../command.js';
import { line } from '../progress.js';

export const mcp: Command = {
  name: 'mcp',
  description: 'Serve the daemon to agents: an MCP server on standard input and output, or over HTTP',
  options: [
    ['--http <IP:PORT>', 'Streamable HTTP at http://IP:PORT/mcp instead, on loopback only'],
    ...daemonOptions,
    ['--timeout-secs <N>', 'Longest wait for the daemon, for one call (env FORKD_HTTP_TIMEOUT; default 60)'],
  ],
  examples: ['forkd mcp', 'claude mcp add forkd -- npx forkd mcp', 'forkd mcp --http 127.0.0.1:8890'],
  run: async (options) => {
    const { serveOnHttp, serveOnStdio } = await import('../../client/mcp/server.js');
    const http = options.string('http');
    const bind = http === undefined ? undefined : parseBind(http, '--http');
    if (bind && !isLoopback(bind))
      throw options.wrong('--http', `${bind.host} is not loopback: it would need no token`);
    const seconds = options.string('timeout-secs', { env: 'FORKD_HTTP_TIMEOUT' }) ?? '60';
    if (!/^\d{1,6}$/.test(seconds)) throw options.wrong('--timeout-secs', `'${seconds}' is not a whole number`);
    const controller = await controllerOf(options, Number(seconds) * 1000);
    const served = { controller, version: VERSION, onProblem: (reason: string) => line(`⚠ ${reason}`) };
    if (!bind) {
      await serveOnStdio(served);
      await controller.close();
      return 0;
    }
    const server = await serveOnHttp(served, bind);
    const { port } = server.address() as AddressInfo;
    line(`==> http://${http?.slice(0, http.lastIndexOf(':'))}:${port}/mcp`);
    await new Promise<void>((resolve) => {
      for (const name of ['SIGINT', 'SIGTERM'] as const) process.on(name, () => resolve());
    });
    server.close();
    server.closeAllConnections();
    await controller.close();
    return 0;
  },
};
