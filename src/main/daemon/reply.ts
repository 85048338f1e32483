/** How requests are read and failures are told: every error leaves as `{error, code, hint}`. */
import type { FastifyError, FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { type ErrorCode, ForkdError, reasonOf } from '../../contract/errors.js';
import type { ErrorBody } from '../../contract/rest.js';

declare module 'fastify' {
  interface FastifyContextConfig {
    /** The body is neither read as JSON nor required to be. */
    bodyIgnored?: boolean;
  }
  interface FastifyRequest {
    /** What a request without one in its path was about. */
    object: string | undefined;
  }
  interface FastifyReply {
    failure: ErrorCode | undefined;
  }
}

const JSON_TYPE = /^application\/(json|[^;\s]+\+json)\s*(;|$)/i;

/** Any Content-Type may come with what has no body, as the reference's clients send it. */
export const readBodies = (app: FastifyInstance): void => {
  app.removeAllContentTypeParsers();
  app.addContentTypeParser('*', { parseAs: 'string' }, (request, text, done) => {
    if (request.routeOptions.config.bodyIgnored || !request.routeOptions.schema?.body) return done(null, undefined);
    if (!JSON_TYPE.test(request.headers['content-type'] ?? '')) return done(new ForkdError('BODY_TYPE'));
    try {
      done(null, JSON.parse(String(text)));
    } catch (error) {
      done(new ForkdError('BODY_NOT_JSON', { reason: reasonOf(error) }));
    }
  });
};

export const tellFailures = (app: FastifyInstance): void => {
  app.decorateReply('failure', undefined);
  app.decorateRequest('object', undefined);
  app.setErrorHandler((error: FastifyError, request, reply) => {
    const failure = asOurs(error, request);
    if (failure.httpStatus >= 500) request.log.error({ code: failure.code }, failure.message);
    return send(reply, failure);
  });
  const routes = new Map<string, Set<string>>();
  app.addHook('onRoute', ({ url, method }) => {
    const methods = routes.get(url) ?? new Set();
    for (const one of [method].flat()) methods.add(one);
    routes.set(url, methods);
  });
  app.setNotFoundHandler((request, reply) => {
    const { method } = request;
    const path = pathOf(request);
    const known = [...routes].find(([url]) => patternOf(url).test(path));
    if (!known) return send(reply, new ForkdError('ROUTE_NOT_FOUND', { method, path }));
    reply.header('allow', [...known[1]].join(', '));
    return send(reply, new ForkdError('METHOD_NOT_ALLOWED', { method, path }));
  });
};

/** What the router itself refuses: a URL that cannot be decoded. */
export const tellFramework = (error: FastifyError, reply: FastifyReply): FastifyReply =>
  send(reply, new ForkdError('QUERY_INVALID', { reason: error.message }, error));

export const pathOf = ({ url }: FastifyRequest): string => url.split('?', 1)[0] ?? url;

const patternOf = (url: string): RegExp => new RegExp(`^${url.replace(/:\w+/g, '[^/]+')}$`);

export const bodyOfError = ({ message, code, hint }: ForkdError): ErrorBody => ({ error: message, code, hint });

const send = (reply: FastifyReply, failure: ForkdError): FastifyReply => {
  reply.failure = failure.code;
  return reply.code(failure.httpStatus).send(bodyOfError(failure));
};

const asOurs = (error: FastifyError | ForkdError, request: FastifyRequest): ForkdError => {
  if (error instanceof ForkdError) return error;
  if (error.validation) {
    if (error.validationContext !== 'body') return new ForkdError('QUERY_INVALID', { reason: error.message });
    return new ForkdError(request.body === undefined ? 'BODY_TYPE' : 'BODY_INVALID', { reason: error.message });
  }
  if (error.statusCode === 413) return new ForkdError('BODY_TOO_LARGE');
  if (error.statusCode !== undefined && error.statusCode < 500)
    return new ForkdError('BODY_NOT_JSON', { reason: error.message }, error);
  return ForkdError.from(error);
};
