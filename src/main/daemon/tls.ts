/** Certificate and key of the TCP listener: PEM files, read at the start, and again when the daemon is told to. */
import { X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createSecureContext } from 'node:tls';
import { ForkdError, reasonOf } from '../../contract/errors.js';

export interface TlsFiles {
  certPath: string;
  keyPath: string;
}

export interface TlsPair {
  cert: Buffer;
  key: Buffer;
}

/** Both or neither. Throws DAEMON_REFUSED. */
export const tlsFiles = (certPath: string | undefined, keyPath: string | undefined): TlsFiles | undefined => {
  if (certPath === undefined && keyPath === undefined) return undefined;
  if (certPath !== undefined && keyPath !== undefined) return { certPath, keyPath };
  const [given, other] = certPath === undefined ? ['key', 'cert'] : ['cert', 'key'];
  throw new ForkdError('DAEMON_REFUSED', { reason: `there is --tls-${given} but no --tls-${other}` });
};

/** Throws DAEMON_REFUSED for files that cannot be read, are no PEM, or do not belong together. */
export const readTls = ({ certPath, keyPath }: TlsFiles): TlsPair => {
  const [cert, key] = [read('cert', certPath), read('key', keyPath)];
  try {
    new X509Certificate(cert);
  } catch (error) {
    throw refused(`--tls-cert ${certPath} is not a certificate: ${reasonOf(error)}`, error);
  }
  try {
    createSecureContext({ cert, key });
  } catch (error) {
    throw refused(`--tls-key ${keyPath} is not the key of --tls-cert ${certPath}: ${reasonOf(error)}`, error);
  }
  return { cert, key };
};

/** Why clients will not accept it, as far as it can be seen from here. */
export const certProblem = ({ cert }: TlsPair, now = Date.now()): string | undefined => {
  const { validFrom, validTo } = new X509Certificate(cert);
  if (Date.parse(validTo) < now) return `the certificate has expired (${validTo})`;
  if (Date.parse(validFrom) > now) return `the certificate is not valid yet (from ${validFrom})`;
  return undefined;
};

const read = (which: string, path: string): Buffer => {
  try {
    return readFileSync(path);
  } catch (error) {
    throw refused(`cannot read --tls-${which}: ${reasonOf(error)}`, error);
  }
};

const refused = (reason: string, cause: unknown): ForkdError => new ForkdError('DAEMON_REFUSED', { reason }, cause);
