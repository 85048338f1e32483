#pragma once

#include "args.h"
#include "layer_writer.h"

namespace forkd {

// The options object of the bindings that write layers.
class LayerOptions {
 public:
  LayerOptions(Args* args, size_t i) : args_(args), options_(args->Object(i, "options")) {}

  int ZstdLevel() { return args_->ToInt(options_.Get("zstdLevel"), "zstdLevel", 0, 19); }
  // All zero when it is left out.
  Digest ParentRoot(bool required);
  Napi::Value Get(const char* name) { return options_.Get(name); }

 private:
  Args* args_;
  Napi::Object options_;
};

Napi::Object ToObject(Napi::Env env, const LayerWritten& written);

}  // namespace forkd
