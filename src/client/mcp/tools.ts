/**
 * What an agent may ask for: the reference's eleven tools, by name, argument and result, and what it has no tool for. Each is one call
 * of the daemon, but `wait_for_text`, which asks until it finds.
 */
import type { McpServer } from '@modelcontextprotocol/server';
import { z } from 'zod';
import type { Controller } from '../controller.js';
import { answer, list } from './answer.js';
import { waitForText } from './wait-for-text.js';

const sandbox_id = z.string().describe('Id of a sandbox, as spawn_sandboxes and list_sandboxes give it');
const tag = z.string().describe('Tag of a snapshot');

const READS = { readOnlyHint: true, openWorldHint: false };
const MAKES = { destructiveHint: false, openWorldHint: false };
const ENDS = { destructiveHint: true, idempotentHint: true, openWorldHint: false };
/** What runs in a sandbox may do anything there. */
const RUNS = { destructiveHint: true, openWorldHint: true };

export const registerTools = (server: McpServer, controller: Controller): void => {
  snapshotTools(server, controller);
  sandboxTools(server, controller);
  guestTools(server, controller);
};

const snapshotTools = (server: McpServer, controller: Controller): void => {
  server.registerTool(
    'list_snapshots',
    { description: 'The snapshots that sandboxes can be spawned from, with their status', annotations: READS },
    () => list(controller.listSnapshots()),
  );
  server.registerTool(
    'create_snapshot',
    {
      description: 'Boots a parent VM, warms it and saves it under a tag. Takes from seconds to a minute',
      inputSchema: z.object({
        tag,
        kernel: z.string().optional().describe("Path on the daemon's host (default: the built-in guest)"),
        rootfs: z.string().optional().describe("Path on the daemon's host (default: the built-in guest)"),
        rw: z
          .boolean()
          .default(false)
          .describe('Accepted and not needed: every root disk can be written, and stays as it was'),
        net: z.boolean().default(false).describe('With a network card, for sandboxes with a network'),
        tap: z.string().nullish().describe('Tap device for a network card'),
        boot_wait_secs: z.number().int().min(1).default(10).describe('The longest time for it to answer'),
        warm_eval: z.string().optional().describe('Python that the warm interpreter runs before it is saved'),
      }),
      annotations: MAKES,
    },
    (a) =>
      answer(
        controller.createSnapshot({
          tag: a.tag,
          bootWaitSecs: a.boot_wait_secs,
          ...(a.kernel === undefined ? {} : { kernel: a.kernel }),
          ...(a.rootfs === undefined ? {} : { rootfs: a.rootfs }),
          ...(a.net ? { net: true } : {}),
          ...(a.tap == null ? {} : { tap: a.tap }),
          ...(a.warm_eval === undefined ? {} : { warmEval: a.warm_eval }),
        }),
      ),
  );
  server.registerTool(
    'delete_snapshot',
    {
      description: 'Deletes a snapshot. Refused while others stand on it, unless cascade deletes those too',
      inputSchema: z.object({ tag, cascade: z.boolean().default(false) }),
      annotations: ENDS,
    },
    ({ tag, cascade }) => answer(controller.deleteSnapshot(tag, { cascade }).then(() => ({ tag, deleted: true }))),
  );
};

const sandboxTools = (server: McpServer, controller: Controller): void => {
  server.registerTool(
    'spawn_sandboxes',
    {
      description:
        'Forks n sandboxes from a snapshot, in milliseconds each. Every one is a microVM with an identity of its own and has answered',
      inputSchema: z.object({
        snapshot_tag: tag,
        n: z.number().int().min(1).max(1000).default(1),
        per_child_netns: z.boolean().default(false),
        memory_limit_mib: z.number().int().positive().nullish().describe('Limit of each on the host (default: none)'),
        prewarm: z.boolean().default(false),
        live_fork: z.boolean().default(false),
        net: z
          .boolean()
          .default(false)
          .describe(
            'A network of its own for each; nothing can be reached but what is allowed. Needs a snapshot with a card',
          ),
        allow: z
          .array(z.string())
          .default([])
          .describe('Addresses that may be reached: CIDR[:PORT], e.g. 10.0.0.0/8:443'),
        allow_domains: z
          .array(z.string())
          .default([])
          .describe('Names that may be reached: NAME[:PORT], e.g. *.pypi.org:443'),
      }),
      annotations: MAKES,
    },
    (a) =>
      list(
        controller.spawnSandboxes({
          snapshotTag: a.snapshot_tag,
          n: a.n,
          perChildNetns: a.per_child_netns,
          prewarm: a.prewarm,
          ...(a.live_fork ? { liveFork: true } : {}),
          ...networkOf(a),
          ...(a.memory_limit_mib == null ? {} : { memoryLimitMib: a.memory_limit_mib }),
        }),
      ),
  );
  server.registerTool(
    'branch_sandbox',
    {
      description: 'Makes a snapshot of a running sandbox, which goes on: try several continuations of one state',
      inputSchema: z.object({
        sandbox_id,
        tag: z.string().nullish().describe('Tag of the new snapshot (default: one is made up)'),
        diff: z.boolean().default(false),
        measure_diff: z.boolean().default(false),
        mode: z.enum(['full', 'diff', 'live']).nullish(),
        wait: z.boolean().default(true).describe('False, with mode live: answers before it is written'),
      }),
      annotations: MAKES,
    },
    (a) =>
      answer(
        controller.branchSandbox(a.sandbox_id, {
          diff: a.diff,
          measure_diff: a.measure_diff,
          wait: a.wait,
          ...(a.tag == null ? {} : { tag: a.tag }),
          ...(a.mode == null ? {} : { mode: a.mode }),
        }),
      ),
  );
  server.registerTool('list_sandboxes', { description: 'All sandboxes of the daemon', annotations: READS }, () =>
    list(controller.listSandboxes()),
  );
  server.registerTool(
    'get_sandbox',
    {
      description: 'One sandbox: whether it runs, and if not, why',
      inputSchema: z.object({ sandbox_id }),
      annotations: READS,
    },
    (a) => answer(controller.getSandbox(a.sandbox_id)),
  );
  server.registerTool(
    'kill_sandbox',
    { description: 'Ends a sandbox and everything in it', inputSchema: z.object({ sandbox_id }), annotations: ENDS },
    (a) => answer(controller.killSandbox(a.sandbox_id).then(() => ({ id: a.sandbox_id, killed: true }))),
  );
};

/** A rule alone means a network too. */
const networkOf = ({ net, allow, allow_domains }: { net: boolean; allow: string[]; allow_domains: string[] }) =>
  net || allow.length > 0 || allow_domains.length > 0 ? { network: { allow, allowDomains: allow_domains } } : {};

const guestTools = (server: McpServer, controller: Controller): void => {
  server.registerTool(
    'exec_command',
    {
      description:
        'Runs a program in a sandbox (no shell: args[0] is the program) and returns its output and exit code',
      inputSchema: z.object({
        sandbox_id,
        args: z.array(z.string()).min(1),
        timeout_secs: z.number().int().positive().default(30),
      }),
      annotations: RUNS,
    },
    (a) => answer(controller.execCommand(a.sandbox_id, a.args, { timeoutSecs: a.timeout_secs })),
  );
  server.registerTool(
    'eval_code',
    {
      description:
        'Runs code in the warm interpreter of a sandbox; modules and what is put into builtins stay. Returns the value of the last expression',
      inputSchema: z.object({ sandbox_id, code: z.string() }),
      annotations: RUNS,
    },
    (a) => answer(controller.evalCode(a.sandbox_id, a.code)),
  );
  server.registerTool(
    'wait_for_text',
    {
      description: 'Waits until the end of a file in a sandbox (a log, say) has a text in it',
      inputSchema: z.object({
        sandbox_id,
        path: z.string(),
        marker: z.string().min(1),
        timeout_secs: z.number().positive().max(3600).default(60),
        poll_interval_ms: z.number().int().min(10).default(200),
      }),
      annotations: READS,
    },
    (a, { mcpReq: { signal } }) =>
      answer(
        waitForText(controller, a.sandbox_id, {
          path: a.path,
          marker: a.marker,
          timeoutMs: a.timeout_secs * 1000,
          pollMs: a.poll_interval_ms,
          signal,
        }),
      ),
  );
  server.registerTool(
    'ping_sandbox',
    {
      description: 'Asks the agent of a sandbox whether it lives',
      inputSchema: z.object({ sandbox_id }),
      annotations: READS,
    },
    (a) => answer(controller.pingSandbox(a.sandbox_id)),
  );
};
