/** How results and refusals of the daemon become results of a tool: the text of an error, its code and its hint all arrive. */
import type { CallToolResult } from '@modelcontextprotocol/server';
import { ControllerError } from '../error.js';

const text = (value: unknown) => ({ type: 'text' as const, text: JSON.stringify(value) });

/** One object. */
export const answer = async (asked: Promise<object>): Promise<CallToolResult> => {
  try {
    const value = await asked;
    return { content: [text(value)], structuredContent: { ...value } };
  } catch (error) {
    return refusal(error);
  }
};

/** A block for each element; all of them as `result` in the structured content, as clients of the reference's server have it. */
export const list = async (asked: Promise<object[]>): Promise<CallToolResult> => {
  try {
    const result = await asked;
    return { content: result.map(text), structuredContent: { result } };
  } catch (error) {
    return refusal(error);
  }
};

const refusal = (error: unknown): CallToolResult => {
  const { message } = error as Error;
  const more = error instanceof ControllerError ? { status: error.status, code: error.code, hint: error.hint } : {};
  const lines = [message, ...(more.hint === undefined ? [] : [more.hint])];
  return {
    isError: true,
    content: [{ type: 'text', text: lines.join('\n') }],
    structuredContent: { error: message, ...more },
  };
};
