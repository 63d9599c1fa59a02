/* The same in C: generate_c ARTIFACT ID... */
#include <autodeploy/autodeploy.h>
#include <stdio.h>
#include <stdlib.h>

static int fail(void) {
  fprintf(stderr, "%s\n", autodeploy_last_error());
  return 1;
}

int main(int argc, char** argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: generate_c ARTIFACT ID...\n");
    return 2;
  }
  const size_t num_tokens = (size_t)argc - 2;
  int64_t* prompt = malloc(num_tokens * sizeof(int64_t));
  if (prompt == NULL) return 1;
  for (size_t i = 0; i < num_tokens; ++i) prompt[i] = atoll(argv[i + 2]);

  autodeploy_engine* engine = NULL;
  if (autodeploy_engine_create(argv[1], NULL, &engine) != AUTODEPLOY_OK) return fail();

  autodeploy_request_params params;
  autodeploy_request_params_init(&params, sizeof(params));
  params.max_tokens = 16;
  params.temperature = 0;
  int64_t id = 0;
  if (autodeploy_engine_add_request(engine, prompt, num_tokens, &params, &id) != AUTODEPLOY_OK) return fail();

  int finished = 0;
  while (!finished) {
    autodeploy_outputs* outputs = NULL;
    if (autodeploy_engine_wait(engine, 10.0, &outputs) != AUTODEPLOY_OK) return fail();
    for (size_t i = 0; i < autodeploy_outputs_size(outputs); ++i) {
      const autodeploy_output* output = autodeploy_outputs_get(outputs, i);
      for (size_t t = 0; t < output->num_tokens; ++t) printf("%lld ", (long long)output->token_ids[t]);
      if (output->finish_reason == AUTODEPLOY_FINISH_ERROR) fprintf(stderr, "%s\n", output->error);
      if (output->finish_reason != AUTODEPLOY_FINISH_NONE) finished = 1;
    }
    fflush(stdout);
    autodeploy_outputs_free(outputs);
  }
  printf("\n");
  autodeploy_engine_destroy(engine);
  free(prompt);
  return 0;
}
