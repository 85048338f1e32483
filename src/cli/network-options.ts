/** The options by which a child gets a network, and what it may reach. */
import type { NetworkWish } from '../contract/network.js';
import type { Options } from './options.js';

export const networkOptions: [string, string][] = [
  ['--net', 'Give each child a network of its own, from which nothing can be reached but what is allowed (root)'],
  [
    '--allow <CIDR[:PORT]>',
    'With --net: let it reach these addresses, e.g. 10.0.0.0/8:443, 1.1.1.1:53/udp; repeatable',
  ],
  [
    '--allow-domain <NAME[:PORT]>',
    'With --net: let it reach what this name stands for, e.g. pypi.org, "*.pypi.org:443"; repeatable',
  ],
];

/** Undefined keys are left out, as requests want them. `--allow` alone means `--net` too. */
export const networkOf = (options: Options): { network?: NetworkWish } => {
  const allow = options.strings('allow');
  const allowDomains = options.strings('allow-domain');
  const isAsked = options.flag('net') || allow.length > 0 || allowDomains.length > 0;
  return isAsked ? { network: { allow, allowDomains } } : {};
};
