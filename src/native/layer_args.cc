#include "layer_args.h"

namespace forkd {

Digest LayerOptions::ParentRoot(bool required) {
  Digest root = {};
  Napi::Value value = options_.Get("parentRoot");
  if (value.IsUndefined() && !required) return root;
  if (!FromHex(args_->ToText(value, "parentRoot"), &root) || root == Digest{}) {
    args_->Refuse("parentRoot", "64 hexadecimal digits, not all zero");
  }
  return root;
}

Napi::Object ToObject(Napi::Env env, const LayerWritten& written) {
  Napi::Object result = Napi::Object::New(env);
  result.Set("root", ToHex(written.root));
  result.Set("entries", static_cast<double>(written.entries));
  result.Set("dataBytes", static_cast<double>(written.data_bytes));
  result.Set("fileBytes", static_cast<double>(written.file_bytes));
  return result;
}

}  // namespace forkd
