/**
 * Signatures of packs: Ed25519 over manifest.toml, which has the hash of everything else. `manifest.sig` holds the signer's public key
 * (32 bytes) and the signature (64).
 */
import { createPrivateKey, createPublicKey, type KeyObject, sign as signBytes, verify } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { ForkdError, reasonOf } from '../../contract/errors.js';
import { invalid } from './format.js';

export const PACK_SIGNATURE = 'manifest.sig';
export const SIGNATURE_BYTES = 32 + 64;

/** Before what is signed: a signature for something else is none for a pack. */
const CONTEXT = Buffer.from('forkd pack 3\n');
/** DER of a public Ed25519 key, up to the key itself (RFC 8410). */
const SPKI = Buffer.from('302a300506032b6570032100', 'hex');

/** An Ed25519 key in PEM. Throws KEY_INVALID. */
export const readSigningKey = (path: string): KeyObject => readKey(path, createPrivateKey);

/** A public one; a private one will do. Throws KEY_INVALID. */
export const readTrustedKey = (path: string): KeyObject => readKey(path, createPublicKey);

const readKey = (path: string, make: (pem: Buffer) => KeyObject): KeyObject => {
  try {
    const key = make(readFileSync(path));
    if (key.asymmetricKeyType !== 'ed25519') throw new Error(`it is an ${key.asymmetricKeyType} key, not Ed25519`);
    return key;
  } catch (error) {
    throw new ForkdError('KEY_INVALID', { path, reason: reasonOf(error) }, error);
  }
};

const rawOf = (key: KeyObject): Buffer => key.export({ type: 'spki', format: 'der' }).subarray(SPKI.length);

export const signManifest = (manifest: Buffer, key: KeyObject): Buffer =>
  Buffer.concat([rawOf(createPublicKey(key)), signBytes(null, Buffer.concat([CONTEXT, manifest]), key)]);

/**
 * Holds a manifest to its signature, if there is one. With `trusted` keys there must be one, by one of them.
 * Throws PACK_INVALID when it is wrong, PACK_UNTRUSTED.
 */
export const checkSignature = (
  path: string,
  manifest: Buffer,
  signature: Buffer | undefined,
  trusted: KeyObject[],
): void => {
  const untrusted = (reason: string) => new ForkdError('PACK_UNTRUSTED', { path, reason });
  if (signature === undefined) {
    if (trusted.length > 0) throw untrusted('it is not signed');
    return;
  }
  const raw = signature.subarray(0, 32);
  const signer = createPublicKey({ key: Buffer.concat([SPKI, raw]), format: 'der', type: 'spki' });
  if (!verify(null, Buffer.concat([CONTEXT, manifest]), signer, signature.subarray(32)))
    throw invalid(path, 'its signature is wrong');
  if (trusted.length > 0 && !trusted.some((key) => rawOf(key).equals(raw)))
    throw untrusted(`it is signed by another key, ${raw.toString('base64')}`);
};
