#pragma once

#include <vector>

#include "args.h"
#include "regions.h"

namespace forkd {

// An array of {base, bytes, offset}: whole pages, at least one, all inside an image of `image_bytes`.
std::vector<Regions::Region> ToRegions(Args& args, Napi::Value value, uint64_t image_bytes);

}  // namespace forkd
