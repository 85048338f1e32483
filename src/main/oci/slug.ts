/** An image's name as part of a file's or a tag's: the reference's rule. */
export const slugOf = (image: string): string => image.replace(/[^\p{L}\p{N}]/gu, '-').replace(/^-+|-+$/g, '');
