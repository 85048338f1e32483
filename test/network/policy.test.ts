/** What users may write of what a child may reach. */
import * as assert from 'uvu/assert';
import { LinkAddresses, parseNetwork } from '../../src/net/address.js';
import { parsePolicy, rulesFor } from '../../src/main/network/policy.js';
import { suite } from '../support/suite.js';

const policy = suite('network policy');

const allowed = (...allow: string[]) => parsePolicy({ allow, allowDomains: [] }).allowed;
const domains = (...allowDomains: string[]) => parsePolicy({ allow: [], allowDomains }).domains;

policy('addresses, ports and protocols', () => {
  assert.equal(allowed('10.1.2.3/8:443', '1.1.1.1:53/udp', '192.0.2.0/24:8000-8999/tcp', '0.0.0.0/0'), [
    { to: { address: '10.0.0.0', prefix: 8 }, ports: { from: 443, to: 443 } },
    { to: { address: '1.1.1.1', prefix: 32 }, ports: { from: 53, to: 53 }, protocol: 'udp' },
    { to: { address: '192.0.2.0', prefix: 24 }, ports: { from: 8000, to: 8999 }, protocol: 'tcp' },
    { to: { address: '0.0.0.0', prefix: 0 } },
  ]);
});

policy('what is no rule is refused, with the reason', () => {
  for (const rule of [
    '',
    '10.0.0.0/33',
    '10.0.0',
    '1.2.3.4:0',
    '1.2.3.4:9-8',
    '1.2.3.4:70000',
    '::1',
    '1.2.3.4/8/sctp',
  ])
    assert.throws(() => allowed(rule), /is not a rule/);
  assert.throws(() => allowed('pypi.org:443'), /--allow-domain/);
  for (const rule of ['', 'a..b', '-a.org', 'a.org:0', 'a b', '*.', '*.*.org', 'a*.org'])
    assert.throws(() => domains(rule), /is not a rule/, rule);
  assert.throws(() => domains('1.2.3.4'), /--allow,|go to --allow/);
  assert.throws(() => allowed(...Array.from({ length: 257 }, () => '1.2.3.4')), /at most 256/);
});

policy('names match whole labels', () => {
  const rules = domains('PyPI.org.', '*.example.org:443');
  assert.equal(rulesFor(rules, 'pypi.org'), [{ name: 'pypi.org', below: false }]);
  for (const name of ['evil-pypi.org', 'pypi.org.evil.com', 'x.pypi.org', 'example.org', 'anexample.org'])
    assert.equal(rulesFor(rules, name), [], name);
  assert.equal(rulesFor(rules, 'a.b.example.org'), [{ name: 'example.org', below: true, port: 443 }]);
  assert.is(rulesFor(domains('*'), 'anything.at.all').length, 1);
});

policy('no two children share an address, up to 4,000 and beyond', () => {
  const links = new LinkAddresses({ address: '10.43.0.0', prefix: 16 });
  const addresses = Array.from({ length: 4000 }, (_, i) => [links.hostEnd(i + 1), links.childEnd(i + 1)]).flat();
  assert.is(new Set(addresses).size, 8000);
  assert.is(links.count, 32_767);
  assert.equal([links.hostEnd(1), links.childEnd(1), links.childEnd(254)], ['10.43.0.2', '10.43.0.3', '10.43.1.253']);
  assert.is(links.childEnd(links.count), '10.43.255.255');
  assert.is(parseNetwork('10.43.0.0/x'), undefined);
});

policy.run();
