/* The header is C: this file must compile as C99, and the sizes of its structs are part of the contract. */
#include "autodeploy/autodeploy.h"

int64_t c_max_seq_len(const char* artifact_dir) {
  autodeploy_engine_options options;
  autodeploy_engine* engine = NULL;
  int64_t len = -1;
  autodeploy_engine_options_init(&options, sizeof(options));
  options.num_threads = 1;
  if (autodeploy_engine_create(artifact_dir, &options, &engine) == AUTODEPLOY_OK) {
    len = autodeploy_engine_max_seq_len(engine);
  }
  autodeploy_engine_destroy(engine);
  return len;
}

size_t c_sizeof_options(void) { return sizeof(autodeploy_engine_options); }
size_t c_sizeof_params(void) { return sizeof(autodeploy_request_params); }
size_t c_sizeof_output(void) { return sizeof(autodeploy_output); }
