/* The C API of autodeploy: serve an artifact from any program, without Python.
 *
 * Stability. Functions, enumerators and struct fields are only ever added, fields at the end of a struct; the
 * major number of AUTODEPLOY_API_VERSION changes when that is broken. Structs that the caller fills start
 * with struct_size: set them up with their _init function, which knows the defaults.
 *
 * Errors. Functions that can fail return a status; autodeploy_last_error() then says what was expected, what
 * was found and what to do, for the calling thread. Nothing is thrown across this border.
 *
 * Threads. An engine runs on a thread of its own and may be called from any thread, except that nobody may
 * use it during or after autodeploy_engine_destroy(). Pointers stay valid as long as each function says.
 */
#ifndef AUTODEPLOY_AUTODEPLOY_H_
#define AUTODEPLOY_AUTODEPLOY_H_

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define AUTODEPLOY_API __attribute__((visibility("default")))
#else
#define AUTODEPLOY_API
#endif

#define AUTODEPLOY_API_VERSION_MAJOR 1
#define AUTODEPLOY_API_VERSION_MINOR 0

#ifdef __cplusplus
extern "C" {
#endif

typedef enum autodeploy_status {
  AUTODEPLOY_OK = 0,
  AUTODEPLOY_INVALID_ARGUMENT = 1, /* a request or an option is out of range */
  AUTODEPLOY_INVALID_ARTIFACT = 2, /* malformed or inconsistent artifact or checkpoint */
  AUTODEPLOY_UNSUPPORTED = 3,      /* valid, but nothing here can run it */
  AUTODEPLOY_OUT_OF_MEMORY = 4,    /* it does not fit the memory or the limits given */
  AUTODEPLOY_IO = 5,               /* the operating system refused */
  AUTODEPLOY_CANCELLED = 6,        /* the engine was closed, or a callback gave up */
  AUTODEPLOY_INTERNAL = 7          /* a mistake of this library, or an engine that has stopped */
} autodeploy_status;

typedef enum autodeploy_finish_reason {
  AUTODEPLOY_FINISH_NONE = 0,   /* the request goes on */
  AUTODEPLOY_FINISH_STOP = 1,   /* an end or stop token came */
  AUTODEPLOY_FINISH_LENGTH = 2, /* max_tokens came */
  AUTODEPLOY_FINISH_CANCELLED = 3,
  AUTODEPLOY_FINISH_ERROR = 4
} autodeploy_finish_reason;

typedef enum autodeploy_load_format {
  AUTODEPLOY_LOAD_AUTO = 0, /* weights of the checkpoint, or of an artifact that holds them */
  AUTODEPLOY_LOAD_DUMMY = 1 /* made-up weights: no checkpoint is read, none needs to be there */
} autodeploy_load_format;

typedef struct autodeploy_engine autodeploy_engine;
typedef struct autodeploy_outputs autodeploy_outputs; /* what one step brought */

/* Bytes of weights loaded so far, and in all. Returns 0 to go on; anything else gives up with
 * AUTODEPLOY_CANCELLED. */
typedef int (*autodeploy_progress_fn)(int64_t done, int64_t total, void* user_data);

/* 0 leaves a choice to the engine. */
typedef struct autodeploy_engine_options {
  size_t struct_size;
  int64_t max_seq_len;      /* tokens of prompt and output together */
  int64_t max_num_seqs;     /* requests that run together; others wait */
  int64_t max_batch_tokens; /* tokens of one step; at least max_num_seqs */
  int64_t cache_bytes;      /* limit of the caches */
  int32_t page_size;        /* tokens per cache page */
  int32_t num_threads;      /* default: the processors that affinity and cgroup allow */
  int32_t exact;    /* 1: no int8 activations; results equal those of dequantized weights in float32 */
  int32_t prefault; /* 1: back the caches with memory at the start rather than at first use */
  autodeploy_progress_fn progress; /* may be NULL; called on the creating thread */
  void* progress_user_data;
  const char* const* plugins; /* [num_plugins] libraries with kernels for an author's operators (plugin.h) */
  size_t num_plugins;
  int32_t load_format; /* an autodeploy_load_format */
  uint64_t dummy_seed; /* of AUTODEPLOY_LOAD_DUMMY: the same seed makes the same weights */
  const char* device;  /* "cpu" (default), "cuda" or "cuda:N"; NULL: the default */
  const char* dtype; /* of activations: "auto" (default), "float32"; on a GPU "bfloat16" and "float16", too */
  double gpu_memory_fraction; /* of a GPU's memory that may be in use, by anybody, with this engine: 0.9 */
} autodeploy_engine_options;

/* Arrays need to stay valid during autodeploy_engine_add_request only. */
typedef struct autodeploy_request_params {
  size_t struct_size;
  int64_t max_tokens;                  /* default 16; at least 1 */
  double temperature;                  /* default 1; 0 is greedy */
  int64_t top_k;                       /* default 0: all tokens */
  double top_p;                        /* default 1 */
  double min_p;                        /* default 0 */
  double repetition_penalty;           /* default 1 */
  double presence_penalty;             /* default 0 */
  double frequency_penalty;            /* default 0 */
  const int64_t* logit_bias_token_ids; /* [num_logit_bias] */
  const double* logit_bias_values;     /* [num_logit_bias], -100 to 100 */
  size_t num_logit_bias;
  int64_t min_tokens; /* default 0: tokens before an end or stop token may come */
  int32_t ignore_eos; /* 1: end tokens do not end the request */
  int32_t has_seed;   /* 1: `seed` makes the draws reproducible; 0: a fresh one */
  uint64_t seed;
  int32_t logprobs; /* default -1: none; n >= 0: of the chosen token and of the n most likely ones */
  const int64_t* stop_token_ids; /* [num_stop_token_ids] */
  size_t num_stop_token_ids;
  const int64_t* eos_token_ids; /* [num_eos_token_ids]; default none given: those of the artifact */
  size_t num_eos_token_ids;
} autodeploy_request_params;

typedef struct autodeploy_token_logprob {
  int64_t token_id;
  float logprob; /* natural logarithm, of the model's own distribution */
} autodeploy_token_logprob;

typedef struct autodeploy_chosen_logprob {
  autodeploy_token_logprob chosen;
  int32_t rank; /* 1: the most likely one */
  int32_t num_top;
  const autodeploy_token_logprob* top; /* [num_top], most likely first */
} autodeploy_chosen_logprob;

typedef struct autodeploy_output {
  int64_t request_id;
  const int64_t* token_ids; /* [num_tokens] new ones, a token that ended the request included */
  size_t num_tokens;
  const autodeploy_chosen_logprob* logprobs; /* [num_tokens], or NULL where not asked for */
  int32_t finish_reason;                     /* an autodeploy_finish_reason */
  int64_t stop_token_id;                     /* the token that ended it, or -1 */
  const char* error;                         /* for AUTODEPLOY_FINISH_ERROR, else NULL */
} autodeploy_output;

/* Version of the library as built, "major.minor.patch", and of its API: 1000 * major + minor. */
AUTODEPLOY_API const char* autodeploy_version(void);
AUTODEPLOY_API int32_t autodeploy_api_version(void);

/* About the last function that failed on this thread; "" before. Valid until the next call on this thread. */
AUTODEPLOY_API const char* autodeploy_last_error(void);
AUTODEPLOY_API const char* autodeploy_status_name(autodeploy_status status);

/* Fill in the defaults. Pass sizeof the struct. */
AUTODEPLOY_API void autodeploy_engine_options_init(autodeploy_engine_options* options, size_t struct_size);
AUTODEPLOY_API void autodeploy_request_params_init(autodeploy_request_params* params, size_t struct_size);

/* Opens an artifact folder; options may be NULL. *engine is NULL on failure. */
AUTODEPLOY_API autodeploy_status autodeploy_engine_create(const char* artifact_dir,
                                                          const autodeploy_engine_options* options,
                                                          autodeploy_engine** engine);
/* Cancels what runs, ends the engine's thread and frees everything but outputs and strings handed out. NULL
 * is ignored. */
AUTODEPLOY_API void autodeploy_engine_destroy(autodeploy_engine* engine);

/* Queues a request; params may be NULL. Malformed requests fail with AUTODEPLOY_INVALID_ARGUMENT and touch no
 * others. */
AUTODEPLOY_API autodeploy_status autodeploy_engine_add_request(autodeploy_engine* engine,
                                                               const int64_t* prompt_token_ids,
                                                               size_t num_prompt_tokens,
                                                               const autodeploy_request_params* params,
                                                               int64_t* request_id);
/* Ends a request at the next step; its last output says AUTODEPLOY_FINISH_CANCELLED. Unknown and ended ids
 * are ignored. */
AUTODEPLOY_API autodeploy_status autodeploy_engine_cancel(autodeploy_engine* engine, int64_t request_id);

/* The outputs of one step, as soon as there are any; 0 seconds polls. *outputs is NULL when the time is up.
 * Fails with AUTODEPLOY_INTERNAL when the engine has stopped and everything was delivered. */
AUTODEPLOY_API autodeploy_status autodeploy_engine_wait(autodeploy_engine* engine, double timeout_seconds,
                                                        autodeploy_outputs** outputs);
AUTODEPLOY_API size_t autodeploy_outputs_size(const autodeploy_outputs* outputs);
/* Valid until the outputs are freed; NULL beyond the size. */
AUTODEPLOY_API const autodeploy_output* autodeploy_outputs_get(const autodeploy_outputs* outputs,
                                                               size_t index);
AUTODEPLOY_API void autodeploy_outputs_free(autodeploy_outputs* outputs);

/* The plan of every byte and every kernel, as a JSON object; valid as long as the engine. */
AUTODEPLOY_API autodeploy_status autodeploy_engine_plan(autodeploy_engine* engine, const char** json);
/* Counters since the start as a JSON object; free it with autodeploy_string_free. */
AUTODEPLOY_API autodeploy_status autodeploy_engine_stats(autodeploy_engine* engine, char** json);
/* NULL while the engine works, else why it has stopped; free it with autodeploy_string_free. */
AUTODEPLOY_API autodeploy_status autodeploy_engine_health(autodeploy_engine* engine, char** reason);
AUTODEPLOY_API void autodeploy_string_free(char* string);

/* Largest values that requests are checked against. */
AUTODEPLOY_API int64_t autodeploy_engine_vocab_size(const autodeploy_engine* engine);
AUTODEPLOY_API int64_t autodeploy_engine_max_seq_len(const autodeploy_engine* engine);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* AUTODEPLOY_AUTODEPLOY_H_ */
