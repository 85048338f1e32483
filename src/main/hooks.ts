/** What who asks something of an engine hears while it is done, and by what it is called off. */
import type { Progress } from './image/index.js';
import type { LoadProgress } from './memory/image.js';

export interface Hooks {
  signal?: AbortSignal;
  onStep?: (step: string) => void;
  /** Steps of building the guest image, with the fraction that is done. */
  onProgress?: Progress;
}

export interface ForkHooks extends Hooks {
  onLoad?: LoadProgress;
  onReady?: (ready: number) => void;
  /** Told the reason when children are restored cold though a hot fork was not ruled out by the request. */
  onFallback?: (reason: string) => void;
  /** Told when VMs are held apart by less than before, and why. */
  onWeaker?: (reason: string) => void;
  keepWorkDir?: boolean;
}
