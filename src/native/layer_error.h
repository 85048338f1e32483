#pragma once

#include <napi.h>

#include <string>

#include "error.h"

namespace forkd {

// Why a layer, or a chain of them, cannot be used: the system call that failed, or what is wrong with the
// file.
struct LayerError {
  SysError sys;
  std::string reason;
  int layer = -1;  // its place in the chain, 0 the base; -1 when there is just one

  explicit operator bool() const { return sys || !reason.empty(); }
  std::string Text() const;
};

// Why a chunk could not be produced. No strings: it is made where faults are served.
struct ChunkError {
  SysError sys;
  const char* what = nullptr;  // static text: "hash mismatch" ...
  int layer = -1;              // place in the chain of the layer that failed, 0 the base

  explicit operator bool() const { return sys || what; }
  // "hash mismatch (layer 2)", "EIO: Input/output error, pread (layer 0)".
  std::string Text() const;
};

LayerError ToLayerError(const ChunkError& error);

// A failed system call as ThrowSysError does; damage as an Error with code LAYER_DAMAGED, the text in
// `reason` and, in a chain, its place in `layer`.
Napi::Value ThrowLayerError(Napi::Env env, const LayerError& error);

}  // namespace forkd
