import { randomBytes } from 'node:crypto';

/** What a template calls itself while it rehearses, and a spare until it is wanted; each child replaces all of it. */
export const rehearsalIdentity = () => ({
  action: 'fork' as const,
  entropy: randomBytes(64).toString('base64'),
  hostname: 'sb-00000000-00000000',
  machine_id: randomBytes(16).toString('hex'),
  index: 0,
});
