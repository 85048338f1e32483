/** What doctor and quickstart can put right by themselves. Nothing here changes a kernel setting, a group or a file of the user's. */
import type { Engine } from '../../engine.js';
import type { Progress } from '../../image/index.js';
import { installPackages } from '../packages.js';
import type { CheckResult } from './check.js';

export type Fix = { kind: 'packages'; packages: string[] } | { kind: 'image' } | { kind: 'kvm' };

export const describeFix = (fix: Fix): string => {
  if (fix.kind === 'packages') return `apt-get install -y --no-install-recommends ${fix.packages.join(' ')}`;
  return fix.kind === 'image'
    ? 'build the guest image (downloads Debian packages)'
    : 'try KVM by booting a guest through it';
};

/** The fixes of all results, in an order that works: packages before the image they build, the image before the boot. */
export const planFixes = (results: CheckResult[]): Fix[] => {
  const fixes = results.flatMap(({ fix }) => (fix ? [fix] : []));
  const packages = [...new Set(fixes.flatMap((fix) => (fix.kind === 'packages' ? fix.packages : [])))];
  const has = (kind: Fix['kind']) => fixes.some((fix) => fix.kind === kind);
  return [
    ...(packages.length > 0 ? [{ kind: 'packages' as const, packages }] : []),
    ...(has('image') ? [{ kind: 'image' as const }] : []),
    ...(has('kvm') ? [{ kind: 'kvm' as const }] : []),
  ];
};

export interface FixHooks {
  signal: AbortSignal;
  onStep: (step: string) => void;
  onProgress: Progress;
}

/** Throws what installation, image builder and engine throw. */
export const applyFix = async (fix: Fix, engine: Engine, { signal, onStep, onProgress }: FixHooks): Promise<void> => {
  if (fix.kind === 'packages') await installPackages(fix.packages, { signal, onProgress });
  else if (fix.kind === 'image') await engine.image(onProgress, signal);
  else await engine.kvm({ signal, onStep });
};
