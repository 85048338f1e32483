import { closeSync, openSync } from 'node:fs';
import { errnoOf } from '../../contract/errors.js';
import type { NetworkFds, TaskInput, TaskOutput } from '../../contract/task.js';
import { LinkAddresses } from '../../net/address.js';
import { makeNetwork } from '../../net/make.js';
import { ROUTE } from '../../net/route.js';
import { native } from '../../native/binding.js';

/** All of them, but for numbers that another program took meanwhile; none when one cannot be made. */
export const networks = ({ numbers, links, own: addressesOfHost }: TaskInput<'networks'>): TaskOutput<'networks'> => {
  const addresses = new LinkAddresses(links);
  const made: { number: number; fds: NetworkFds }[] = [];
  const taken: number[] = [];
  const own = openSync('/proc/self/ns/net', 'r');
  let host: number | undefined;
  try {
    host = native.netlinkSocket(own, ROUTE);
    for (const number of numbers) {
      try {
        made.push({ number, fds: makeNetwork(host, number, addresses, addressesOfHost) });
      } catch (error) {
        if (errnoOf(error) !== 'EEXIST') throw error;
        taken.push(number);
      }
    }
    return { made, taken };
  } catch (error) {
    for (const { fds } of made) for (const fd of Object.values(fds)) closeSync(fd);
    throw error;
  } finally {
    closeSync(own);
    if (host !== undefined) closeSync(host);
  }
};
