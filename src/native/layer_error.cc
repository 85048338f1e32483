#include "layer_error.h"

#include <cstring>

namespace forkd {

namespace {

std::string Describe(SysError sys, const std::string& reason, int layer) {
  std::string text = reason;
  if (sys) {
    const char* name = strerrorname_np(sys.number);
    const char* description = strerrordesc_np(sys.number);
    text = std::string(name ? name : "UNKNOWN") + ": " + (description ? description : "unknown error") +
           ", " + sys.syscall;
  }
  if (layer >= 0) text += " (layer " + std::to_string(layer) + ")";
  return text;
}

}  // namespace

std::string LayerError::Text() const {
  return Describe(sys, reason, layer);
}

std::string ChunkError::Text() const {
  return Describe(sys, what ? what : "", layer);
}

LayerError ToLayerError(const ChunkError& error) {
  return {error.sys, error.what ? error.what : "", error.layer};
}

Napi::Value ThrowLayerError(Napi::Env env, const LayerError& error) {
  if (error.sys) return ThrowSysError(env, error.sys);
  Napi::Error thrown = Napi::Error::New(env, error.Text());
  thrown.Set("code", "LAYER_DAMAGED");
  thrown.Set("reason", error.reason);
  if (error.layer >= 0) thrown.Set("layer", Napi::Number::New(env, error.layer));
  thrown.ThrowAsJavaScriptException();
  return env.Undefined();
}

}  // namespace forkd
