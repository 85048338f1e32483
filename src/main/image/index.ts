/** Guest images: build the default one, find it, or make an initramfs for a kernel and root file system of one's own. */
export { type BuildOptions, buildDefaultImage, findImage } from './build.js';
export { buildInitrd, type InitrdOptions } from './initrd.js';
export type { GuestImage, ImageFile, ImageRecord, Progress } from './types.js';
