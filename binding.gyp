{
  "targets": [
    {
      "target_name": "forkd_native",
      "sources": ["<!@(ls -1 src/native/*.cc)"],
      "include_dirs": ["<!(node -p \"require('node-addon-api').include_dir\")"],
      "defines": ["NAPI_VERSION=8", "NODE_ADDON_API_DISABLE_DEPRECATED", "NAPI_DISABLE_CPP_EXCEPTIONS",
        # A worker that is being terminated cannot throw: without this the attempt aborts the process.
        "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS", "_GNU_SOURCE"],
      # Node unloads an addon with the last worker that loaded it; the spawn thread's code must stay.
      "ldflags": ["-Wl,-z,nodelete"],
      "cflags_cc": ["-std=c++20", "-fno-exceptions", "-fno-rtti", "-Wall", "-Wextra", "-Wno-unused-parameter"],
      "cflags_cc!": ["-std=gnu++17", "-fexceptions"]
    },
    {
      "target_name": "forkd_hotfork",
      "type": "shared_library",
      "product_prefix": "",
      "sources": ["<!@(find src/native/hotfork -maxdepth 1 -name \"*.c\")"],
      "defines": ["_GNU_SOURCE"],
      "cflags": ["-std=gnu11", "-O2", "-fPIC", "-Wall", "-Wextra"],
      "libraries": ["-ldl", "-lpthread"]
    }
  ]
}
