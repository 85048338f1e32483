#include "region_args.h"

#include "uffd.h"

namespace forkd {

namespace {

// The page tables of a process reach no further.
constexpr uint64_t kAddressMax = uint64_t{1} << 47;

uint64_t PagesOf(Args& args, const Napi::Object& object, const char* name) {
  Napi::Value value = object.Get(name);
  double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : -1;
  if (number >= 0 && number < static_cast<double>(kAddressMax)) {
    uint64_t bytes = static_cast<uint64_t>(number);
    if (static_cast<double>(bytes) == number && bytes % kPageBytes == 0) return bytes;
  }
  args.Refuse(name, "whole pages, less than 2^47 bytes");
  return 0;
}

}  // namespace

std::vector<Regions::Region> ToRegions(Args& args, Napi::Value value, uint64_t image_bytes) {
  std::vector<Regions::Region> regions;
  Napi::Array array = args.ToArray(value, "regions");
  for (uint32_t i = 0; args.Ok() && i < array.Length(); i++) {
    if (!array.Get(i).IsObject()) {
      args.Refuse("regions", "an array of {base, bytes, offset}");
      break;
    }
    Napi::Object object = array.Get(i).As<Napi::Object>();
    regions.push_back(
        {PagesOf(args, object, "base"), PagesOf(args, object, "bytes"), PagesOf(args, object, "offset")});
    const Regions::Region& region = regions.back();
    if (region.bytes == 0 || region.offset + region.bytes > image_bytes) {
      args.Refuse("regions", "regions inside the image");
    }
  }
  if (array.Length() == 0) args.Refuse("regions", "at least one region");
  return regions;
}

}  // namespace forkd
