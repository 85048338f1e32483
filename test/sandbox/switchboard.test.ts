/** The socket of all agents against those who connect and say nothing, or nonsense. Whom they would reach is not asked: no VM is needed. */
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { limits } from '../../src/contract/limits.js';
import { AgentClient } from '../../src/main/agent/client.js';
import { Switchboard } from '../../src/main/agent/switchboard.js';

interface Context {
  dir: string;
  board: Switchboard;
  sockets: Socket[];
}

const ID = 'sb-1-00000001';
const usual = { ...limits };

const test = suite<Context>('one socket for all agents');

test.before.each(async (context) => {
  context.dir = mkdtempSync(join(tmpdir(), 'board-'));
  context.sockets = [];
  const mask = process.umask(0);
  context.board = await Switchboard.open(join(context.dir, 'a.sock'), async () => undefined).finally(() =>
    process.umask(mask),
  );
});
test.after.each(({ dir, board, sockets }) => {
  for (const socket of sockets) socket.destroy();
  board.close();
  rmSync(dir, { recursive: true, force: true });
  Object.assign(limits, usual);
});

/** A connection that has been made, and whether it is over. */
const open = ({ board, sockets }: Context, text = ''): Promise<{ socket: Socket; isOver: boolean }> =>
  new Promise((resolve) => {
    const socket = connect({ path: board.path, allowHalfOpen: true });
    sockets.push(socket);
    const one = { socket, isOver: false };
    socket.on('error', () => undefined).on('close', () => (one.isOver = true));
    socket.resume().on('end', () => socket.destroy());
    socket.once('connect', () => {
      if (text !== '') socket.write(text);
      resolve(one);
    });
  });

const until = async (isSo: () => boolean): Promise<void> => {
  for (let i = 0; i < 500 && !isSo(); i++) await new Promise((resolve) => setTimeout(resolve, 10));
  assert.ok(isSo());
};

test('it is for this user alone, whatever files are', ({ board }) => {
  assert.is(statSync(board.path).mode & 0o777, 0o600);
});

test('of those that name nobody the oldest go, and who names a sandbox stays', async (context) => {
  const [ours, theirs] = await pair(context.dir);
  const agent = new AgentClient(ours, ID);
  context.sockets.push(ours, theirs);
  context.board.offer(ID, agent);
  const named = await open(context, `${ID}\n`);
  const silent: { isOver: boolean }[] = [];
  for (let i = 0; i < limits.agentNamelessMax + 10; i++) silent.push(await open(context, i % 2 ? 'sb-' : ''));
  await until(() => silent.slice(0, 10).every(({ isOver }) => isOver));
  assert.is(silent.slice(10).filter(({ isOver }) => isOver).length, 0);
  assert.not(named.isOver);
});

test('nonsense, a line without an end and the name of nobody are closed', async (context) => {
  const bad = ['\0\0\n', 'x'.repeat(65), `${ID}\n`, '\n', `{"action":"ping"}\n`];
  const all = await Promise.all(bad.map((text) => open(context, text)));
  await until(() => all.every(({ isOver }) => isOver));
});

test('who names nobody has so much time and no more', async (context) => {
  Object.assign(limits, { agentNameMs: 50 });
  const silent = await open(context);
  await until(() => silent.isOver);
});

/** Both ends of a connection. */
const pair = (dir: string): Promise<[Socket, Socket]> =>
  new Promise((resolve) => {
    const path = join(dir, 'pair.sock');
    const server = createServer((theirs) => {
      server.close();
      resolve([ours, theirs]);
    });
    let ours: Socket;
    server.listen(path, () => (ours = connect(path)));
  });

test.run();
