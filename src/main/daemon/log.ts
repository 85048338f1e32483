/** The daemon's log: JSON lines on stderr, each with the id of its request. The only file that knows pino. */
import { destination, levels, type Logger, pino } from 'pino';
import { ForkdError } from '../../contract/errors.js';

/** Throws DAEMON_REFUSED for a level that does not exist. */
export const makeLog = (level: string): Logger => {
  if (level !== 'silent' && !(level in levels.values))
    throw new ForkdError('DAEMON_REFUSED', { reason: `'${level}' is not a log level` });
  return pino(
    {
      level,
      base: null,
      timestamp: () => `,"ts":"${new Date().toISOString()}"`,
      formatters: { level: (label) => ({ level: label }) },
      // The audit log has the requests; whole requests and answers here would only repeat them.
      serializers: { req: () => undefined, res: () => undefined },
    },
    // Nothing that was said is lost when the process is killed.
    destination({ fd: 2, sync: true }),
  );
};
