#pragma once

#include <vector>

#include "layer_error.h"
#include "layer_format.h"

namespace forkd {

struct LayerIndex {
  LayerHeader header;
  std::vector<IndexEntry> entries;

  bool IsBase() const { return header.parent_root == Digest{}; }
};

// The root hash that belongs in a header, for an index of these bytes.
Digest RootOf(const LayerHeader& header, const std::vector<IndexEntry>& entries);

// Reads header and index, and checks all that can be checked without reading a frame. What it allocates is
// bounded by the size of the file, and by kImageBytesMax.
LayerError ReadLayerIndex(int fd, LayerIndex* index);

}  // namespace forkd
