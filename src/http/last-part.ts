/**
 * undici 7 ends the whole process when a server closes the connection of an answer whose reader is behind, as all of HTTP/1.0 do (nodejs/undici#5360; mended
 * in 8, which needs Node 22). An answer that is held back behind its last byte has nothing more to hold back: it is not.
 */
import type { IncomingHttpHeaders } from 'node:http';
import { DecoratorHandler, type Dispatcher } from 'undici';

type Controller = Dispatcher.DispatchController;
type Start = [controller: Controller, status: number, headers: IncomingHttpHeaders, message?: string];
/** Its types leave its methods out. */
interface Answered {
  onResponseStart(...start: Start): void;
  onResponseData(controller: Controller, part: Buffer): void;
}
const Decorated = DecoratorHandler as unknown as new (handler: Dispatcher.DispatchHandler) => Answered;

class LastPart extends Decorated {
  /** Below zero when nobody has said it. */
  #left = -1;

  override onResponseStart(...start: Start): void {
    const [, , headers] = start;
    this.#left = Number(headers['content-length'] ?? -1);
    super.onResponseStart(...start);
  }

  override onResponseData(controller: Controller, part: Buffer): void {
    this.#left -= part.length;
    super.onResponseData(controller, part);
    if (this.#left === 0) controller.resume();
  }
}

export const neverHeldAtItsEnd: Dispatcher.DispatcherComposeInterceptor = (dispatch) => (options, handler) =>
  dispatch(options, new LastPart(handler));
