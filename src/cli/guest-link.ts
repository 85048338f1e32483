/** How commands reach streams, files and ports of a sandbox: over its own socket when it is this user's, else through the daemon. */
import { connect } from 'node:net';
import { ForkdError } from '../contract/errors.js';
import type { PlainReply, RunFacts, RunOptions } from '../contract/guest.js';
import { isSandboxId, parseTarget } from '../contract/names.js';
import { AgentClient } from '../main/agent/client.js';
import { sandboxesDir } from '../main/paths.js';
import { lookUp } from '../main/sandbox/registry.js';
import type { Session } from './follow.js';
import type { Options } from './options.js';

/** The socket of a sandbox of this user, or undefined. A daemon that was named on the command line is the one that is asked. */
export const localSocket = (options: Options, target: string): string | undefined => {
  const parsed = parseTarget(target);
  if (parsed.kind === 'unix') return parsed.path;
  if (parsed.kind === 'tcp')
    throw options.wrong('TARGET', 'needs the id of a sandbox, or unix:PATH: a TCP port of the agent has no streams');
  if (options.string('daemon-url') !== undefined) return undefined;
  try {
    return lookUp(sandboxesDir(), parsed.id).socket;
  } catch (error) {
    if (error instanceof ForkdError && error.code === 'SANDBOX_NOT_FOUND') return undefined;
    throw error;
  }
};

/** A client of the agent behind a socket. The caller closes it. */
export const agentAt = (path: string, name: string): AgentClient => new AgentClient(connect(path), name);

/** The sandbox that a command is about: its first argument, or --target. */
export const targetOf = (options: Options): string => {
  const [id, ...more] = options.positional;
  const named = options.string('target');
  if (more.length > 0) throw options.wrong('ID', 'is given more than once');
  if (id !== undefined && named !== undefined) throw options.wrong('--target', 'does not go with ID');
  const target = id ?? named;
  if (target === undefined) throw options.wrong('ID', 'is required');
  if (id !== undefined && !isSandboxId(id) && !id.startsWith('unix:'))
    throw options.wrong('ID', `'${id}' is not the id of a sandbox`);
  return target;
};

/** What commands do with a guest. */
export interface GuestLink {
  run(options: RunOptions): Promise<Session>;
  runDetached(options: RunOptions): Promise<{ run: number }>;
  runs(): Promise<RunFacts[]>;
  attach(run: number): Promise<{ session: Session; tty: boolean }>;
}

/** Gives a command the sandbox that its options name. Throws SANDBOX_NOT_FOUND, GUEST_OUTDATED, AGENT_ERROR, AGENT_UNREACHABLE. */
export const withLink = async (
  options: Options,
  use: (link: GuestLink) => Promise<number>,
  target = targetOf(options),
): Promise<number> => {
  const path = localSocket(options, target);
  if (path === undefined) throw new ForkdError('SANDBOX_NOT_FOUND', { id: target });
  const agent = agentAt(path, target);
  try {
    return await use(linkTo(agent));
  } finally {
    agent.close();
  }
};

const ASK_MS = 60_000;

const linkTo = (agent: AgentClient): GuestLink => ({
  run: async (run) => agent.open({ action: 'run', ...run }),
  runDetached: async (run) =>
    (await agent.ask({ action: 'run', detach: true, ...run }, ASK_MS)) as { run: number; exit_code: number },
  runs: async () => (await agent.ask<PlainReply>({ action: 'runs' }, ASK_MS)).runs ?? [],
  attach: async (run) => {
    const session = agent.open({ action: 'attach', run });
    return { session, tty: (await session.opened)['tty'] === true };
  },
});
