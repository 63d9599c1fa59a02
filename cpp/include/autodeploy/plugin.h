/* Kernels for an author's own operators, in a shared library that the runtime loads when it is asked for by
 * name.
 *
 * A library exports one function, autodeploy_plugin_get, which describes its operators. An operator is
 * token-wise: its results at a token depend on its operands at that token, whatever tokens of whichever
 * sequences stand beside it. The model's code says so (autodeploy.custom_ops.register_op); verification
 * compares numbers.
 *
 *     create  once per instruction, when a model is loaded: checks shapes and attributes, or says what is
 * wrong run     once per step: no allocation, no exceptions, results bitwise independent of the number of
 * threads destroy when the model is unloaded
 *
 * The header is C; structs grow at their end only, and the version says how far. Operators that keep state
 * between steps are not part of this version. */
#ifndef AUTODEPLOY_PLUGIN_H_
#define AUTODEPLOY_PLUGIN_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define AUTODEPLOY_PLUGIN_ABI 1
#define AUTODEPLOY_PLUGIN_EXPORT __attribute__((visibility("default")))

typedef enum autodeploy_plugin_dtype {
  AUTODEPLOY_PLUGIN_F32 = 0,
  AUTODEPLOY_PLUGIN_F16 = 1,
  AUTODEPLOY_PLUGIN_BF16 = 2,
  AUTODEPLOY_PLUGIN_I64 = 3,
  AUTODEPLOY_PLUGIN_BOOL = 4 /* one byte, 0 or 1 */
} autodeploy_plugin_dtype;

/* A size or stride: constant + per_token * T + per_row * R, for T tokens and R wanted rows of a step. */
typedef struct autodeploy_plugin_dim {
  int64_t constant, per_token, per_row;
} autodeploy_plugin_dim;

/* An operand or a result before any step; strides count elements, and that of the last dim is 1. Results are
 * row-major. */
typedef struct autodeploy_plugin_operand {
  int32_t present; /* 0: an optional operand that is absent; all else is 0 then */
  int32_t dtype;
  int32_t ndim;
  int32_t reserved;
  const autodeploy_plugin_dim* shape;  /* [ndim] */
  const autodeploy_plugin_dim* stride; /* [ndim] */
  const void* constant;                /* the data of a parameter of the model, else NULL */
} autodeploy_plugin_operand;

typedef enum autodeploy_plugin_attr_type {
  AUTODEPLOY_PLUGIN_ATTR_BOOL = 0,
  AUTODEPLOY_PLUGIN_ATTR_INTEGER = 1,
  AUTODEPLOY_PLUGIN_ATTR_NUMBER = 2,
  AUTODEPLOY_PLUGIN_ATTR_TEXT = 3,
  AUTODEPLOY_PLUGIN_ATTR_INTEGERS = 4
} autodeploy_plugin_attr_type;

/* An argument that is no tensor, under its name in the operator's schema. */
typedef struct autodeploy_plugin_attr {
  const char* name;
  int32_t type;
  int32_t reserved;
  int64_t integer; /* of BOOL and INTEGER */
  double number;   /* of NUMBER and INTEGER: a schema's float may have been written as a whole number */
  const char* text;
  const int64_t* integers; /* [num_integers] */
  size_t num_integers;
} autodeploy_plugin_attr;

/* Everything that is known of an instruction when a model is loaded. Valid during `create` only, but for
 * `constant`s, which live as long as the kernel. */
typedef struct autodeploy_plugin_spec {
  size_t struct_size;
  const char* op;
  const autodeploy_plugin_operand* in; /* [num_in], tensors in the order of the schema */
  size_t num_in;
  const autodeploy_plugin_operand* out; /* [num_out] */
  size_t num_out;
  const autodeploy_plugin_attr* attrs; /* [num_attrs], by name */
  size_t num_attrs;
  int64_t max_tokens, max_rows; /* largest step */
  int32_t num_threads;
  int32_t exact;      /* 1: the user forbids fast paths that round activations */
  const char* source; /* line of the model, for messages */
} autodeploy_plugin_spec;

typedef struct autodeploy_plugin_tensor {
  void* data; /* NULL: absent */
  int32_t dtype;
  int32_t ndim;
  const int64_t* shape;  /* [ndim] */
  const int64_t* stride; /* [ndim], in elements */
} autodeploy_plugin_tensor;

typedef void (*autodeploy_plugin_range_fn)(void* user, int64_t begin, int64_t end, int32_t thread);

/* One step. */
typedef struct autodeploy_plugin_call {
  size_t struct_size;
  const autodeploy_plugin_tensor* in;
  size_t num_in;
  const autodeploy_plugin_tensor* out;
  size_t num_out;
  void* workspace; /* of the size asked for, aligned to 64 bytes, contents undefined */
  /* Splits [0, n) into chunks of `grain` over the engine's threads and waits. Not reentrant. */
  void (*parallel_for)(void* pool, int64_t n, int64_t grain, autodeploy_plugin_range_fn fn, void* user);
  void* pool;
} autodeploy_plugin_call;

typedef struct autodeploy_plugin_op {
  const char* op;     /* "namespace::name", as PyTorch knows it */
  const char* kernel; /* name of this implementation, for the plan */
  /* Returns 0 and a kernel (which may be NULL), or writes what was expected and found into `error`. */
  int32_t (*create)(const autodeploy_plugin_spec* spec, void** kernel, char* error, size_t error_size);
  /* Bytes that `run` may use; NULL: none. */
  int64_t (*workspace_bytes)(const void* kernel);
  void (*run)(const void* kernel, const autodeploy_plugin_call* call);
  void (*destroy)(void* kernel); /* NULL: nothing to free */
} autodeploy_plugin_op;

typedef struct autodeploy_plugin {
  uint32_t abi;     /* AUTODEPLOY_PLUGIN_ABI as compiled */
  uint32_t op_size; /* sizeof(autodeploy_plugin_op) as compiled */
  const char* name;
  const autodeploy_plugin_op* ops; /* [num_ops] */
  size_t num_ops;
} autodeploy_plugin;

/* What the library exports. The description lives as long as the process; NULL means that it cannot serve
 * here. */
typedef const autodeploy_plugin* (*autodeploy_plugin_get_fn)(void);
AUTODEPLOY_PLUGIN_EXPORT const autodeploy_plugin* autodeploy_plugin_get(void);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* AUTODEPLOY_PLUGIN_H_ */
