/** pull and push against web servers on loopback: good ones, and ones that lie, redirect, break off or never end. */
import { once } from 'node:events';
import { createHash, generateKeyPairSync, randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import type { ServerResponse } from 'node:http';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { framed, unframed } from '../support/packs.js';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { ForkdError } from '../../src/contract/errors.js';
import { bodyOf, Http, type Patience, redirectedTo } from '../../src/http/client.js';
import { pack } from '../../src/main/hub/pack.js';
import { type LazyPullRequest, pullLazy } from '../../src/main/hub/pull-lazy.js';
import { type PullHooks, type PullRequest, pull, pullsDir } from '../../src/main/hub/pull.js';
import { push } from '../../src/main/hub/push.js';
import { completeSnapshot } from '../../src/main/memory/complete.js';
import { findPackage } from '../../src/main/hub/registry.js';
import { Pool } from '../../src/main/pool.js';
import { Store } from '../../src/main/store/store.js';
import { forkd, startCli } from '../support/cli.js';
import { type Answerer, type Heard, sendFile, serve, type WebServer } from '../support/http.js';
import { putBase, putDisk } from '../support/layers.js';

const root = mkdtempSync(join(tmpdir(), 'transfer-'));
const pool = new Pool();
const store = new Store(join(root, 'from'));
const target = new Store(join(root, 'to'));
const signer = generateKeyPairSync('ed25519');
let good: Buffer;
let sha256 = '';

const PATIENCE: Partial<Patience> = { tries: 4, backoffMs: 5, backoffMaxMs: 20, headersMs: 400, idleMs: 400 };

const withServer = async <T>(answer: Answerer, use: (server: WebServer) => Promise<T>): Promise<T> => {
  const server = await serve(answer);
  try {
    return await use(server);
  } finally {
    await server.close();
  }
};

const withHttp = async <T>(use: (http: Http) => Promise<T>, patience: Partial<Patience> = {}): Promise<T> => {
  const http = new Http({ ...PATIENCE, ...patience });
  try {
    return await use(http);
  } finally {
    await http.close();
  }
};

/** `pulled`, or the code of the error with its reason; what was pulled is removed again. */
const tryPull = async (
  request: Omit<PullRequest, 'url'> & { url: string },
  hooks: PullHooks = {},
  patience: Partial<Patience> = {},
): Promise<string> => {
  try {
    await withHttp((http) => pull(http, target, { ...request, url: new URL(request.url) }, pool, hooks), patience);
    assert.is(target.manifest('base').memory_root, store.manifest('base').memory_root);
    target.remove('base');
    return 'pulled';
  } catch (error) {
    assert.ok(error instanceof ForkdError, String(error));
    assert.equal(target.tags(), [], 'a tag although it failed');
    assert.equal(target.abandoned(), []);
    return `${error.code} ${error.message}`;
  }
};

const parts = (): string[] => (existsSync(pullsDir(target.root)) ? readdirSync(pullsDir(target.root)) : []);

const transfer = suite('transfers');

transfer.before(async () => {
  // Noise, so that the pack has some megabytes to break off in.
  const noise = randomBytes(3_000_000);
  const path = join(root, 'disk');
  const disk = putDisk(path, noise);
  putBase(store, 'base', { 1: 1 }, { kernel: disk, initrd: disk, rootfs: path, rootfs_digest: disk });
  const out = join(root, 'good.tar.zst');
  await pack(store, { tag: 'base', out, signingKey: signer.privateKey });
  good = readFileSync(out);
  sha256 = createHash('sha256').update(good).digest('hex');
});
transfer.after(async () => {
  await pool.close();
  rmSync(root, { recursive: true, force: true });
});
transfer.after.each(() => {
  rmSync(pullsDir(target.root), { recursive: true, force: true });
});

transfer('from a URL and from a hub, by name and version, with hash and signature', async () => {
  const registry = {
    schema_version: 1,
    packages: {
      'team/base': {
        versions: {
          latest: { url: '/packs/base?secret=1', sha256: sha256.toUpperCase(), size_bytes: good.length },
          v1: { url: '/nothing' },
        },
      },
    },
  };
  const answer: Answerer = (request, response) => {
    if (request.path === '/registry.json') response.end(JSON.stringify(registry));
    else if (request.path === '/packs/base?secret=1') sendFile(request, response, good);
    else response.writeHead(404).end('no such thing');
  };
  await withServer(answer, async ({ url }) => {
    assert.is(await tryPull({ url: `${url}/packs/base?secret=1`, sha256, trusted: [signer.publicKey] }), 'pulled');
    const hub = new URL(`${url}/registry.json`);
    const find = (name: string) => withHttp((http) => findPackage(http, hub, name));
    const source = await find('team/base');
    assert.equal([source.sha256, source.bytes], [sha256, good.length]);
    assert.is(await tryPull({ ...source, url: source.url.href }), 'pulled');
    const code = (name: string) =>
      find(name).then(
        () => 'found',
        (e: ForkdError) => e.message,
      );
    assert.match(await code('team/base@v2'), /has the versions latest, v1/);
    assert.match(await code('team/other'), /it has team\/base/);
    assert.match(await code('__proto__/x'), /it has team\/base/);
    const old = await find('team/base@v1');
    assert.match(await tryPull({ ...old, url: old.url.href }), /^HUB_ANSWERED .*\/nothing answered 404/);
    const other = generateKeyPairSync('ed25519').publicKey;
    assert.match(
      await tryPull({ url: `${url}/packs/base?secret=1`, trusted: [other] }),
      /^PACK_UNTRUSTED pack 'http:.*\/packs\/base' /,
    );
    assert.equal(parts(), [], 'what is of no use is not kept');
  });
});

transfer('packs of versions 1 and 2: the root disk is fetched from beside them', async () => {
  const folder = join(root, 'plain');
  mkdirSync(folder);
  const { sidecar = '' } = await pack(store, { tag: 'base', out: join(folder, 'pack'), version: 1 });
  const name = basename(sidecar);
  let hidden = '';
  const answer: Answerer = (request, response) => {
    const path = request.path.replace(/\?.*/, '');
    if (path !== hidden) sendFile(request, response, readFileSync(join(folder, basename(path))));
    else response.writeHead(404).end('no such thing');
  };
  await withServer(answer, async ({ url, heard }) => {
    assert.is(await tryPull({ url: `${url}/a/pack?secret=1` }), 'pulled');
    assert.equal([...new Set(heard.map(({ path }) => path))], ['/a/pack?secret=1', `/a/${name}`]);
    const disk = join(root, 'pulled.ext4');
    const taken = await withHttp((http) => pull(http, target, { url: new URL(`${url}/pack`), disk }, pool));
    assert.equal(['disk_bytes' in taken && taken.disk_bytes, statSync(disk).size], [3_000_000, 3_000_000]);
    const lazily = withHttp((http) => pullLazy(http, target, { url: new URL(`${url}/pack`) }));
    const refused = await lazily.catch((e: ForkdError) => e);
    assert.match(`${(refused as ForkdError).code} ${(refused as ForkdError).message}`, /^PACK_NOT_LAZY .*version 1/);
    hidden = `/${name}`;
    assert.match(await tryPull({ url: `${url}/pack` }), new RegExp(`^HUB_ANSWERED .*/${name} answered 404`));
  });
  assert.ok(parts().length <= 2, 'only the pack may wait for a later try');
});

transfer('a server that closes its connection, as HTTP/1.0 does, while the reader is behind', async () => {
  const content = randomBytes(3_000_000);
  const server = createServer((socket) => {
    socket.on('error', () => undefined);
    socket.once('data', () => {
      socket.write(`HTTP/1.0 200 OK\r\nContent-Length: ${content.length}\r\n\r\n`);
      socket.end(content);
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  try {
    for (let i = 0; i < 5; i++) {
      const hash = createHash('sha256');
      await withHttp(async (http) => {
        for await (const part of bodyOf(await http.send(new URL(`http://127.0.0.1:${port}/`)), http.patience)) {
          await pause(1);
          hash.update(part);
        }
      });
      assert.is(hash.digest('hex'), createHash('sha256').update(content).digest('hex'));
    }
  } finally {
    server.close();
  }
});

transfer('a hub that is not one', async () => {
  const answers: [string | Buffer, RegExp][] = [
    ['<html>', /HUB_INVALID/],
    ['[]', /HUB_INVALID/],
    ['{"packages":{"a/b":[]}}', /PACKAGE_NOT_FOUND/],
    ['{"packages":{"a/b":{"versions":{"latest":{"url":"file:///etc/passwd"}}}}}', /HUB_INVALID.*url/],
    ['{"packages":{"a/b":{"versions":{"latest":{"url":"http://x","sha256":"abc"}}}}}', /HUB_INVALID.*sha256/],
    ['{"packages":{"a/b":{"versions":{"latest":{"url":"http://x","size_bytes":-1}}}}}', /HUB_INVALID.*size_bytes/],
    [Buffer.alloc(17 * 2 ** 20, 0x20), /TRANSFER_REFUSED.*more than/],
  ];
  for (const [text, expected] of answers) {
    await withServer(
      (_, response) => void response.end(text),
      async ({ url }) => {
        const error = await withHttp((http) => findPackage(http, new URL(url), 'a/b')).catch((e: ForkdError) => e);
        assert.match(`${(error as ForkdError).code} ${(error as ForkdError).message}`, expected);
      },
    );
  }
});

transfer('a download that breaks off goes on where it stopped, in the same pull and in a later one', async () => {
  const cut = (request: Heard, response: ServerResponse, bytes: number): void => {
    const from = Number(/^bytes=(\d+)-/.exec(request.headers.range ?? '')?.[1] ?? 0);
    const left = good.subarray(from);
    response.writeHead(from > 0 ? 206 : 200, {
      'content-length': left.length,
      etag: '"one"',
      ...(from > 0 ? { 'content-range': `bytes ${from}-${good.length - 1}/${good.length}` } : {}),
    });
    response.write(left.subarray(0, bytes), () => setTimeout(() => response.destroy(), 20));
  };
  const answer: Answerer = (request, response, count) =>
    count < 3 ? cut(request, response, 200_000) : sendFile(request, response, good);
  await withServer(answer, async ({ url, heard }) => {
    assert.is(await tryPull({ url }), 'pulled');
    assert.is(heard.length, 4);
    assert.is(heard[0]?.headers.range, undefined);
    for (const { headers } of heard.slice(1)) {
      assert.match(headers.range ?? '', /^bytes=[1-9]\d*-$/);
      assert.is(headers['if-range'], '"one"');
    }
  });
  const broken: Answerer = (request, response, count) => {
    if (count < 4) cut(request, response, count === 0 ? 500_000 : 0);
    else sendFile(request, response, good);
  };
  await withServer(broken, async ({ url, heard }) => {
    const waits: string[] = [];
    assert.match(await tryPull({ url }, { onRetry: (reason) => void waits.push(reason) }), /^HUB_UNREACHABLE/);
    assert.is(waits.length, 3);
    assert.is(parts().length, 2, 'a part and what it is of');
    assert.is(await tryPull({ url }), 'pulled');
    assert.match(heard.at(-1)?.headers.range ?? '', /^bytes=[1-9]/);
    assert.equal(parts(), []);
  });
});

transfer('a part of another version is given up, and so is what a server sends instead of the rest', async () => {
  const first = (response: ServerResponse): void => {
    response.writeHead(200, { 'content-length': good.length, etag: '"old"' });
    response.write(Buffer.alloc(300_000, 7), () => setTimeout(() => response.destroy(), 20));
  };
  const second: Answerer[] = [
    // If-Range does not match: the whole new version.
    (request, response) => sendFile(request, response, good, '"new"'),
    (_, response) => void response.writeHead(206, { 'content-range': 'bytes 5-9/100' }).end('xxxxx'),
    (_, response) => void response.writeHead(206).end('xxxxx'),
    (_, response) => void response.writeHead(416, { 'content-range': 'bytes */5' }).end(),
  ];
  for (const answer of second) {
    await withServer(
      (request, response, count) => {
        if (count === 0) return first(response);
        if (count === 1) return answer(request, response, count);
        return sendFile(request, response, good, '"new"');
      },
      async ({ url }) => assert.is(await tryPull({ url }), 'pulled'),
    );
  }
});

transfer('sizes and hashes that are not what was said', async () => {
  await withServer(
    (request, response) => sendFile(request, response, good),
    async ({ url }) => {
      assert.match(await tryPull({ url, sha256: '0'.repeat(64) }), /^TRANSFER_REFUSED .*SHA-256/);
      assert.match(await tryPull({ url, bytes: good.length - 1 }), /^TRANSFER_REFUSED .*not/);
      assert.equal(parts(), []);
    },
  );
  await withServer(
    // No length, and more than the hub said.
    (_, response) => {
      response.write(good);
      response.end('more');
    },
    async ({ url }) => assert.match(await tryPull({ url, bytes: good.length }), /^TRANSFER_REFUSED .*more than/),
  );
  await withServer(
    (_, response) => void response.writeHead(200, { 'content-length': 2 ** 40 }).flushHeaders(),
    async ({ url }) => assert.match(await tryPull({ url }), /^TRANSFER_REFUSED .*more than/),
  );
  const evil = Buffer.from(good);
  evil[1_000_000] = (evil[1_000_000] as number) ^ 1;
  await withServer(
    (request, response) => sendFile(request, response, evil),
    async ({ url }) => {
      assert.match(await tryPull({ url }), /^PACK_INVALID/);
      assert.equal(parts(), []);
    },
  );
});

transfer('bodies that never end, crawl or stall', async () => {
  const endless: Answerer = (_, response) => {
    const more = (): void => {
      while (!response.destroyed && response.write(Buffer.alloc(65_536))) {}
      if (!response.destroyed) response.once('drain', more);
    };
    more();
  };
  await withServer(endless, async ({ url }) => {
    assert.match(await tryPull({ url, bytes: 5_000_000 }), /^TRANSFER_REFUSED .*more than 5000000/);
    const controller = new AbortController();
    setTimeout(() => controller.abort(), 200);
    assert.match(await tryPull({ url }, { signal: controller.signal }), /^CANCELLED/);
    assert.equal(parts(), [], 'nobody said what version it was a part of');
  });
  const stalled: Answerer = (_, response) => void response.writeHead(200, { 'content-length': 100 }).write('x');
  await withServer(stalled, async ({ url, heard }) => {
    assert.match(await tryPull({ url }, {}, { tries: 2 }), /^HUB_UNREACHABLE .*Timeout/i);
    assert.is(heard.length, 2);
  });
  const crawling: Answerer = (_, response) => {
    response.writeHead(200, { 'content-length': 10_000 });
    const timer = setInterval(() => void response.write('x'), 50);
    response.on('close', () => clearInterval(timer));
  };
  await withServer(crawling, async ({ url }) =>
    assert.match(
      await tryPull({ url }, {}, { tries: 2, slowMs: 300 }),
      /^HUB_UNREACHABLE .*less than 1024 bytes a second/,
    ),
  );
  await withServer(
    () => undefined,
    async ({ url }) => assert.match(await tryPull({ url }, {}, { tries: 2 }), /^HUB_UNREACHABLE .*Headers Timeout/),
  );
});

transfer('credentials stay with the host they are for, wherever it redirects', async () => {
  await withServer(
    (request, response) => sendFile(request, response, good),
    async (other) => {
      const answer: Answerer = (request, response) => {
        if (request.path === '/away') response.writeHead(302, { location: `${other.url}/pack` }).end();
        else if (request.path === '/here') response.writeHead(307, { location: '/pack' }).end();
        else sendFile(request, response, good);
      };
      await withServer(answer, async ({ url, heard }) => {
        const own = `Basic ${Buffer.from('me:p@ss').toString('base64')}`;
        const secret = url.replace('//', '//me:p%40ss@');
        assert.is(await tryPull({ url: `${secret}/away` }), 'pulled');
        assert.is(await tryPull({ url: `${secret}/here` }), 'pulled');
        assert.equal(
          heard.map(({ path, headers }) => [path, headers.authorization]),
          [
            ['/away', own],
            ['/here', own],
            ['/pack', own],
          ],
        );
        assert.equal(
          other.heard.map(({ headers }) => headers.authorization),
          [undefined],
        );
      });
    },
  );
});

transfer('redirects that lead nowhere good', async () => {
  const to = (location?: string): Answerer => {
    return (_, response) => void response.writeHead(302, location === undefined ? {} : { location }).end();
  };
  const cases: [string | undefined, RegExp][] = [
    ['/', /more than 5 times/],
    ['file:///etc/passwd', /redirects to file:/],
    ['http://', /not a URL/],
  ];
  for (const [location, expected] of cases) {
    await withServer(to(location), async ({ url }) => assert.match(await tryPull({ url }), expected));
  }
  assert.throws(() => redirectedTo(new URL('https://a/'), 'http://b/'), /from https to http/);
  assert.is(redirectedTo(new URL('https://a/x'), 'https://u:p@b/').href, 'https://b/');
});

transfer('a server that asks for patience gets it, one that refuses is not asked again', async () => {
  await withServer(
    (request, response, count) => {
      if (count < 2) response.writeHead(count === 0 ? 503 : 429, { 'retry-after': '0' }).end();
      else sendFile(request, response, good);
    },
    async ({ url, heard }) => {
      assert.is(await tryPull({ url }), 'pulled');
      assert.is(heard.length, 3);
    },
  );
  for (const status of [401, 403, 404, 410]) {
    await withServer(
      (_, response) => void response.writeHead(status).end('no'),
      async ({ url, heard }) => {
        assert.match(await tryPull({ url }), new RegExp(`^HUB_ANSWERED .* answered ${status}`));
        assert.is(heard.length, 1);
      },
    );
  }
  assert.match(await tryPull({ url: 'http://127.0.0.1:1/x' }, {}, { tries: 2 }), /^HUB_UNREACHABLE .*ECONNREFUSED/);
});

transfer('push uploads a whole pack with its size, tries again, and says what the server said', async () => {
  const upload = (url: string) =>
    withHttp((http) => push(http, store, { tag: 'base', url: new URL(url) })).then(
      ({ bytes }) => `${bytes}`,
      (error: ForkdError) => `${error.code} ${error.message}`,
    );
  const answer: Answerer = (_, response, count) => {
    if (count === 0) response.destroy();
    else if (count === 1) response.writeHead(500).end();
    else response.writeHead(201).end();
  };
  await withServer(answer, async ({ url, heard }) => {
    const said = await upload(`${url}/bucket/base?X-Signature=secret`);
    const last = heard.at(-1);
    assert.equal([last?.method, last?.path], ['PUT', '/bucket/base?X-Signature=secret']);
    assert.is(said, last?.headers['content-length']);
    assert.is(last?.headers['content-type'], undefined);
    assert.is(last?.headers['transfer-encoding'], undefined);
    await withServer(
      (request, response) => sendFile(request, response, last?.body as Buffer),
      async (back) => assert.is(await tryPull({ url: back.url }), 'pulled'),
    );
  });
  await withServer(
    (_, response) => void response.writeHead(403).end('<Error>signature\u001b[31m has expired</Error>'),
    async ({ url, heard }) => {
      const said = await upload(`${url}/x?secret=1`);
      assert.match(said, /^HUB_ANSWERED .*\/x answered 403: <Error>signature \[31m has expired<\/Error>/);
      assert.not.match(said, /secret/);
      assert.is(heard.length, 1);
    },
  );
  await withServer(
    (_, response) => void response.writeHead(301, { location: '/elsewhere' }).end(),
    async ({ url }) => assert.match(await upload(url), /TRANSFER_REFUSED .*redirects a PUT/),
  );
  assert.equal(
    readdirSync(store.root).filter((name) => name.startsWith('.push')),
    [],
  );
});

transfer('the commands: pull, a part that cleanup finds, push, and mistakes', async () => {
  const data = join(root, 'data');
  const env = { XDG_DATA_HOME: data };
  const world = new Store(join(data, 'forkd/snapshots'));
  let stall = true;
  const answer: Answerer = (request, response) => {
    if (request.method === 'PUT') response.end();
    else if (!stall) sendFile(request, response, good);
    else response.writeHead(200, { 'content-length': good.length, etag: '"one"' }).write(good.subarray(0, 500_000));
  };
  await withServer(answer, async ({ url, heard }) => {
    const halves = () => (existsSync(pullsDir(world.root)) ? readdirSync(pullsDir(world.root)) : []);
    const running = startCli(['pull', url, '--sha256', sha256], { env });
    const arrived = () => halves().some((name) => statSync(join(pullsDir(world.root), name)).size >= 500_000);
    while (!arrived()) await new Promise((resolve) => setTimeout(resolve, 20));
    assert.match((await forkd(['cleanup', '--yes'], { env })).stdout, /nothing to remove/, 'it is being downloaded');
    running.kill('SIGKILL');
    await running.ended;
    assert.match((await forkd(['cleanup'], { env })).stdout, /^DEL +partial download /m);
    stall = false;
    const { code, stdout, stderr } = await forkd(['pull', url, '--sha256', sha256, '--json'], { env });
    assert.is(code, 0, stderr);
    assert.match(heard.at(-1)?.headers.range ?? '', /^bytes=500000-$/);
    assert.equal((JSON.parse(stdout) as { made: string[] }).made, ['base']);
    assert.match((await forkd(['pull', url, '--tag', 'base'], { env })).stderr, /already exists/);
    const pushed = await forkd(['push', `${url}/up?s=1`, '--tag', 'base', '--json'], { env });
    assert.is(pushed.code, 0, pushed.stderr);
    assert.is((JSON.parse(pushed.stdout) as { url: string }).url, `${url}/up`);
  });
  for (const args of [
    ['pull'],
    ['pull', 'name'],
    ['pull', 'a b/c'],
    ['pull', 'http://x', '--sha256', 'x'],
    ['push', 'ftp://x', '--tag', 'base'],
  ])
    assert.is((await forkd(args, { env })).code, 2, args.join(' '));
});

/** The pack with one byte changed, its manifest and its frames as sound as before. */
const tampered = async (find: (content: Buffer) => number): Promise<Buffer> => {
  const content = await unframed(good);
  const at = find(content);
  assert.ok(at > 0);
  content[at] = (content[at] as number) ^ 1;
  return framed(content);
};

/** `made`, or why not; `complete` then says `whole`, or why not. */
const lazily = async (url: string, more: Omit<LazyPullRequest, 'url'> = {}): Promise<string> =>
  withHttp((http) => pullLazy(http, target, { ...more, url: new URL(url) })).then(
    () => 'made',
    (error: ForkdError) => {
      assert.equal([target.tags(), target.abandoned()], [[], []]);
      return `${error.code} ${error.message}`;
    },
  );

const complete = (): Promise<string> =>
  completeSnapshot(target, 'base', pool, { patience: PATIENCE }).then(
    () => 'whole',
    (error: ForkdError) => {
      assert.ok(target.isPartial('base'));
      return `${error.code} ${error.message}`;
    },
  );

transfer('a lazy pull makes a tag of holes, which what is fetched fills', async () => {
  let fails = false;
  await withServer(
    (request, response, count) => {
      // One part of the disk comes through.
      if (fails && count > 2) response.destroy();
      else sendFile(request, response, good);
    },
    async ({ url }) => {
      assert.is(await lazily(url, { trusted: [signer.publicKey] }), 'made');
      const { rootfs } = target.manifest('base');
      assert.ok(statSync(rootfs).blocks * 512 < 10_000, 'the disk is a hole');
      assert.is(
        await Promise.resolve()
          .then(() => target.hold('base'))
          .then(
            () => 'held',
            (error: ForkdError) => error.code,
          ),
        'SNAPSHOT_PARTIAL',
      );
      fails = true;
      assert.match(await complete(), /^HUB_UNREACHABLE/);
      const before = statSync(rootfs).blocks;
      fails = false;
      assert.is(await complete(), 'whole');
      assert.ok(before < statSync(rootfs).blocks);
      assert.equal(readFileSync(rootfs), readFileSync(join(root, 'disk')));
      assert.is(target.manifest('base').memory_root, store.manifest('base').memory_root);
      assert.equal(readdirSync(target.dir('base')).sort(), [
        'initrd',
        'kernel',
        'memory.layer',
        'rootfs.ext4',
        'snapshot.json',
        'vmstate',
      ]);
      target.remove('base');
    },
  );
});

transfer('a lazy pull is refused where it cannot be, and what is not what it was is not taken', async () => {
  const from = <T>(content: Buffer, use: (url: string) => Promise<T>): Promise<T> =>
    withServer(
      (request, response) => sendFile(request, response, content),
      ({ url }) => use(url),
    );
  await withServer(
    (_, response) => void response.end(good),
    async ({ url }) => assert.match(await lazily(url), /^RANGES_MISSING/),
  );
  await from(good, async (url) => {
    assert.match(await lazily(url, { sha256 }), /^PACK_NOT_LAZY .*SHA-256/);
    const other = generateKeyPairSync('ed25519').publicKey;
    assert.match(await lazily(url, { trusted: [other] }), /^PACK_UNTRUSTED/);
  });
  const encrypted = Buffer.concat([Buffer.from('age-encryption.org/v1\n'), randomBytes(1000)]);
  assert.match(await from(encrypted, (url) => lazily(url)), /^PACK_NOT_LAZY .*encrypted/);
  assert.match(await from(good.subarray(0, -1), (url) => lazily(url)), /^PACK_INVALID .*seek table/);
  assert.match(await from(randomBytes(100), (url) => lazily(url)), /^PACK_INVALID/);
  for (const [find, reason] of [
    [(content: Buffer) => content.length - 1_000_000, /^PACK_INVALID .*block \d+ of its disk/],
    [(content: Buffer) => content.indexOf(Buffer.alloc(4096, 1)) + 9, /^PACK_INVALID .*chunk 0 of its memory/],
  ] as const) {
    await from(await tampered(find), async (url) => {
      assert.is(await lazily(url, { trusted: [signer.publicKey] }), 'made');
      assert.match(await complete(), reason);
      target.remove('base');
    });
  }
  let etag = '"one"';
  await withServer(
    (request, response) => sendFile(request, response, good, etag),
    async ({ url }) => {
      assert.is(await lazily(url), 'made');
      etag = '"two"';
      assert.match(await complete(), /^REMOTE_CHANGED/);
      target.remove('base');
    },
  );
});

transfer.run();
