/** The MCP server as an agent's program meets it: the official client, over both transports, against a real daemon with real VMs. */
import { writeFileSync } from 'node:fs';
import { request } from 'node:http';
import { join } from 'node:path';
import { Client, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';
import { StdioClientTransport } from '@modelcontextprotocol/client/stdio';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { CLI, start } from '../support/cli.js';
import { startDaemon, type TestDaemon } from '../support/daemon.js';
import { BASE_TAG, makeWorld } from '../support/world.js';

const TOKEN = 'a-token-of-enough-bytes';
const THE_ELEVEN = [
  'list_snapshots',
  'create_snapshot',
  'spawn_sandboxes',
  'branch_sandbox',
  'list_sandboxes',
  'get_sandbox',
  'kill_sandbox',
  'exec_command',
  'eval_code',
  'wait_for_text',
  'ping_sandbox',
];
const world = makeWorld(true);
let daemon: TestDaemon;
let client: Client;

const mcp = suite('mcp');

mcp.before(async () => {
  const tokenFile = join(world.root, 'token');
  writeFileSync(tokenFile, TOKEN);
  daemon = await startDaemon(world, ['--token-file', tokenFile]);
  client = new Client({ name: 'test', version: '1' });
  const env = { ...process.env, ...world.env, FORKD_TOKEN: ` ${TOKEN}\n`, FORKD_URL: `unix:${daemon.socketPath}` };
  await client.connect(
    new StdioClientTransport({ command: process.execPath, args: [CLI, 'mcp'], env: env as Record<string, string> }),
  );
});
mcp.after(async () => {
  await client.close();
  assert.is(await daemon.stop(), 0);
  world.close();
});

type Fields = Record<string, unknown>;

const call = async (name: string, args: Fields = {}, by = client) => {
  const { content, structuredContent, isError } = await by.callTool({ name, arguments: args });
  const texts = (content as { type: string; text: string }[]).map(({ text }) => text);
  return { texts, value: structuredContent as Fields, isError: isError === true };
};

const spawnOne = async (): Promise<string> => {
  const { value, isError, texts } = await call('spawn_sandboxes', { snapshot_tag: BASE_TAG });
  assert.not.ok(isError, texts.join());
  return (value['result'] as { id: string }[])[0]?.id as string;
};

mcp('the eleven tools of the reference are there, with their arguments', async () => {
  const { tools } = await client.listTools();
  const byName = new Map(
    tools.map((tool) => [tool.name, tool.inputSchema as { properties?: object; required?: string[] }]),
  );
  for (const name of THE_ELEVEN) assert.ok(byName.has(name), name);
  assert.equal(
    byName
      .get('exec_command')
      ?.required?.filter((key) => key !== 'timeout_secs')
      .sort(),
    ['args', 'sandbox_id'],
  );
  assert.equal(Object.keys(byName.get('wait_for_text')?.properties ?? {}).sort(), [
    'marker',
    'path',
    'poll_interval_ms',
    'sandbox_id',
    'timeout_secs',
  ]);
  assert.match(client.getInstructions() ?? '', /spawn_sandboxes/);
});

mcp('networks: the daemon is asked for one, by a rule alone too, and says what is missing', async () => {
  for (const wish of [{ net: true }, { allow_domains: ['*.pypi.org:443'] }, { allow: ['10.0.0.0/8:443'] }]) {
    const { value } = await call('spawn_sandboxes', { snapshot_tag: BASE_TAG, ...wish });
    assert.is(value['code'], 'NETWORK_CARD_MISSING', JSON.stringify(wish));
  }
});

mcp('a list is a block for each element, and all of them as `result`', async () => {
  const { texts, value } = await call('list_snapshots');
  assert.equal(
    texts.map((text) => JSON.parse(text).tag),
    [BASE_TAG],
  );
  assert.equal(value['result'], [JSON.parse(texts[0] as string)]);
});

mcp('spawn, ping, eval, exec, wait for a text, branch, kill', async () => {
  const sandbox_id = await spawnOne();
  assert.is((await call('ping_sandbox', { sandbox_id })).value['pong'], true);
  assert.is(
    (await call('eval_code', { sandbox_id, code: 'import builtins\nbuiltins.x = 6\nx * 7' })).value['result'],
    '42',
  );
  assert.is((await call('eval_code', { sandbox_id, code: 'x' })).value['result'], '6');
  const told = await call('exec_command', { sandbox_id, args: ['sh', '-c', 'echo out; echo err >&2; exit 3'] });
  assert.equal([told.value['stdout'], told.value['stderr'], told.value['exit_code']], ['out\n', 'err\n', 3]);
  assert.equal(JSON.parse(told.texts[0] as string), told.value);

  const path = "/tmp/it's $(a) log";
  const waiting = call('wait_for_text', { sandbox_id, path, marker: 'ready', poll_interval_ms: 20 });
  await call('eval_code', { sandbox_id, code: `open(${JSON.stringify(path)}, 'w').write('x' * 9000 + 'ready now')` });
  const { value } = await waiting;
  assert.is(value['found'], true);
  assert.match(String(value['last_excerpt']), /^x+ready now$/);
  const missed = await call('wait_for_text', { sandbox_id, path, marker: 'never', timeout_secs: 0.1 });
  assert.equal([missed.isError, missed.value['found']], [false, false]);

  assert.is((await call('branch_sandbox', { sandbox_id, tag: 'after' })).value['status'], 'ready');
  assert.equal((await call('kill_sandbox', { sandbox_id })).value, { id: sandbox_id, killed: true });
  assert.equal((await call('list_sandboxes')).value['result'], []);
  const again = await call('spawn_sandboxes', { snapshot_tag: 'after', n: 2 });
  for (const { id } of again.value['result'] as { id: string }[]) {
    assert.is((await call('eval_code', { sandbox_id: id, code: 'x' })).value['result'], '6');
    await call('kill_sandbox', { sandbox_id: id });
  }
});

mcp('what the daemon refuses arrives whole: text, code and hint', async () => {
  const none = await call('spawn_sandboxes', { snapshot_tag: 'none' });
  assert.ok(none.isError);
  assert.is(none.value['code'], 'SNAPSHOT_NOT_FOUND');
  assert.match(none.texts[0] as string, /snapshot 'none' not found\n.*forkd images/);
  const gone = await call('exec_command', { sandbox_id: 'sb-00000000-00000000', args: ['true'] });
  assert.equal([gone.isError, gone.value['status']], [true, 404]);
  const wrong = await call('exec_command', { sandbox_id: 'x', args: [] }).catch((error: Error) => error);
  assert.ok(wrong instanceof Error || wrong.isError, 'an argument that the schema forbids');
});

mcp('over HTTP: the same tools; other hosts and pages of other origins are refused', async () => {
  const running = start(process.execPath, [CLI, 'mcp', '--http', '127.0.0.1:0', '--daemon-token', TOKEN], {
    env: world.env,
  });
  try {
    const url = /http:\S+/.exec(await running.says(/http:\S+\/mcp/))?.[0] as string;
    const other = new Client({ name: 'test', version: '1' });
    await other.connect(new StreamableHTTPClientTransport(new URL(url)));
    assert.equal((await call('list_sandboxes', {}, other)).value['result'], []);
    await other.close();
    for (const headers of [{ host: 'evil.example' }, { origin: 'http://evil.example' }])
      assert.is(await statusOf(url, headers), 403, JSON.stringify(headers));
  } finally {
    running.kill('SIGTERM');
  }
  assert.is((await running.ended).code, 0);
});

const statusOf = (url: string, headers: Record<string, string>): Promise<number | undefined> =>
  new Promise((resolve, reject) => {
    request(url, { method: 'POST', headers: { 'content-type': 'application/json', ...headers } }, (response) => {
      response.resume();
      resolve(response.statusCode);
    })
      .once('error', reject)
      .end('{}');
  });

mcp('an address that is not loopback is refused', async () => {
  const ended = await start(process.execPath, [CLI, 'mcp', '--http', '0.0.0.0:0'], { env: world.env }).ended;
  assert.is(ended.code, 2);
  assert.match(ended.stderr, /not loopback/);
});

mcp.run();
