// Written by fusedopt from the rules' own Python; see fusedopt/rules.
constexpr int HYPERPARAMETERS = 9;  // lr, betas[0], betas[1], eps, weight_decay, loss_scale, clip_value, clip_norm, seed
constexpr int SCALARS = 0;
constexpr int STATES = 3;
constexpr int SEED = 8;
constexpr int CONSTANTS = 8;
constexpr int STAGES = 0;
constexpr int RESULTS = 1;

// Adam(amsgrad=False, maximize=False, decoupled_weight_decay=False), float32
struct Variant0 {
  typedef float real;
  typedef Streams<Plain<float>, Plain<float>, Plain<float>, Plain<float>> Kept;
  static constexpr int states = 2;  // exp_avg, exp_avg_sq
  static constexpr unsigned reads = 0xf;  // p, g, the states
  static constexpr unsigned summed = 0x0;  // results of stages that scalars reads
  static constexpr unsigned spread = 0x0;  // and those of which an element has its row's
  struct Constants { real beta1, rest1, beta2, rest2, step_size, eps, decay, grad_scale; };
  static __device__ void scalars(const double* h, double step, double grad_scale, const double* a,
                                 const double* r, Constants& c, double* next) {
    const double t11 = power(h[2], step);
    const double t13 = double(1.0) - t11;
    const double t14 = square_root(t13);
    const double t15 = double(1.0) - h[1];
    const double t16 = double(1.0) - h[2];
    const double t17 = h[0] * t14;
    const double t18 = power(h[1], step);
    const double t19 = double(1.0) - t18;
    const double t20 = t17 / t19;
    const double t21 = h[3] * t14;
    const double t22 = grad_scale * h[5];
    const double new_beta1 = h[1];
    const double new_rest1 = t15;
    const double new_beta2 = h[2];
    const double new_rest2 = t16;
    const double new_step_size = t20;
    const double new_eps = t21;
    const double new_decay = h[4];
    const double new_grad_scale = t22;
    c.beta1 = real(new_beta1);
    c.rest1 = real(new_rest1);
    c.beta2 = real(new_beta2);
    c.rest2 = real(new_rest2);
    c.step_size = real(new_step_size);
    c.eps = real(new_eps);
    c.decay = real(new_decay);
    c.grad_scale = real(new_grad_scale);
  }
  static __device__ void update(const Constants& c, real& p, real& g, real* s, const real* r) {
    const bool t13 = c.grad_scale != real(1.0);
    const real t14 = g / c.grad_scale;
    const real t15 = t13 ? t14 : g;
    const bool t17 = c.decay != real(0.0);
    const real t18 = c.decay * p;
    const real t19 = t15 + t18;
    const real t20 = t17 ? t19 : t15;
    const real t21 = c.beta1 * s[0];
    const real t22 = c.rest1 * t20;
    const real t23 = t21 + t22;
    const real t24 = c.beta2 * s[1];
    const real t25 = t20 * t20;
    const real t26 = c.rest2 * t25;
    const real t27 = t24 + t26;
    const real t28 = square_root(t27);
    const real t29 = t28 + c.eps;
    const real t30 = t23 / t29;
    const real t31 = c.step_size * t30;
    const real t32 = p - t31;
    const real new_p = t32;
    const real new_g = t15;
    const real new_exp_avg = t23;
    const real new_exp_avg_sq = t27;
    p = new_p;
    g = new_g;
    s[0] = new_exp_avg;
    s[1] = new_exp_avg_sq;
  }
};

// Adam(amsgrad=False, maximize=False, decoupled_weight_decay=False), float64
struct Variant1 {
  typedef double real;
  typedef Streams<Plain<double>, Plain<double>, Plain<double>, Plain<double>> Kept;
  static constexpr int states = 2;  // exp_avg, exp_avg_sq
  static constexpr unsigned reads = 0xf;  // p, g, the states
  static constexpr unsigned summed = 0x0;  // results of stages that scalars reads
  static constexpr unsigned spread = 0x0;  // and those of which an element has its row's
  struct Constants { real beta1, rest1, beta2, rest2, step_size, eps, decay, grad_scale; };
  static __device__ void scalars(const double* h, double step, double grad_scale, const double* a,
                                 const double* r, Constants& c, double* next) {
    const double t11 = power(h[2], step);
    const double t13 = double(1.0) - t11;
    const double t14 = square_root(t13);
    const double t15 = double(1.0) - h[1];
    const double t16 = double(1.0) - h[2];
    const double t17 = h[0] * t14;
    const double t18 = power(h[1], step);
    const double t19 = double(1.0) - t18;
    const double t20 = t17 / t19;
    const double t21 = h[3] * t14;
    const double t22 = grad_scale * h[5];
    const double new_beta1 = h[1];
    const double new_rest1 = t15;
    const double new_beta2 = h[2];
    const double new_rest2 = t16;
    const double new_step_size = t20;
    const double new_eps = t21;
    const double new_decay = h[4];
    const double new_grad_scale = t22;
    c.beta1 = real(new_beta1);
    c.rest1 = real(new_rest1);
    c.beta2 = real(new_beta2);
    c.rest2 = real(new_rest2);
    c.step_size = real(new_step_size);
    c.eps = real(new_eps);
    c.decay = real(new_decay);
    c.grad_scale = real(new_grad_scale);
  }
  static __device__ void update(const Constants& c, real& p, real& g, real* s, const real* r) {
    const bool t13 = c.grad_scale != real(1.0);
    const real t14 = g / c.grad_scale;
    const real t15 = t13 ? t14 : g;
    const bool t17 = c.decay != real(0.0);
    const real t18 = c.decay * p;
    const real t19 = t15 + t18;
    const real t20 = t17 ? t19 : t15;
    const real t21 = c.beta1 * s[0];
    const real t22 = c.rest1 * t20;
    const real t23 = t21 + t22;
    const real t24 = c.beta2 * s[1];
    const real t25 = t20 * t20;
    const real t26 = c.rest2 * t25;
    const real t27 = t24 + t26;
    const real t28 = square_root(t27);
    const real t29 = t28 + c.eps;
    const real t30 = t23 / t29;
    const real t31 = c.step_size * t30;
    const real t32 = p - t31;
    const real new_p = t32;
    const real new_g = t15;
    const real new_exp_avg = t23;
    const real new_exp_avg_sq = t27;
    p = new_p;
    g = new_g;
    s[0] = new_exp_avg;
    s[1] = new_exp_avg_sq;
  }
};

// Adam(amsgrad=False, maximize=False, decoupled_weight_decay=False), bfloat16
struct Variant2 {
  typedef float real;
  typedef Streams<Plain<BFloat16>, Plain<BFloat16>, Plain<BFloat16>, Plain<BFloat16>> Kept;
  static constexpr int states = 2;  // exp_avg, exp_avg_sq
  static constexpr unsigned reads = 0xf;  // p, g, the states
  static constexpr unsigned summed = 0x0;  // results of stages that scalars reads
  static constexpr unsigned spread = 0x0;  // and those of which an element has its row's
  struct Constants { real beta1, rest1, beta2, rest2, step_size, eps, decay, grad_scale; };
  static __device__ void scalars(const double* h, double step, double grad_scale, const double* a,
                                 const double* r, Constants& c, double* next) {
    const double t11 = power(h[2], step);
    const double t13 = double(1.0) - t11;
    const double t14 = square_root(t13);
    const double t15 = double(1.0) - h[1];
    const double t16 = double(1.0) - h[2];
    const double t17 = h[0] * t14;
    const double t18 = power(h[1], step);
    const double t19 = double(1.0) - t18;
    const double t20 = t17 / t19;
    const double t21 = h[3] * t14;
    const double t22 = grad_scale * h[5];
    const double new_beta1 = h[1];
    const double new_rest1 = t15;
    const double new_beta2 = h[2];
    const double new_rest2 = t16;
    const double new_step_size = t20;
    const double new_eps = t21;
    const double new_decay = h[4];
    const double new_grad_scale = t22;
    c.beta1 = real(new_beta1);
    c.rest1 = real(new_rest1);
    c.beta2 = real(new_beta2);
    c.rest2 = real(new_rest2);
    c.step_size = real(new_step_size);
    c.eps = real(new_eps);
    c.decay = real(new_decay);
    c.grad_scale = real(new_grad_scale);
  }
  static __device__ void update(const Constants& c, real& p, real& g, real* s, const real* r) {
    const bool t13 = c.grad_scale != real(1.0);
    const real t14 = g / c.grad_scale;
    const real t15 = t13 ? t14 : g;
    const bool t17 = c.decay != real(0.0);
    const real t18 = c.decay * p;
    const real t19 = t15 + t18;
    const real t20 = t17 ? t19 : t15;
    const real t21 = c.beta1 * s[0];
    const real t22 = c.rest1 * t20;
    const real t23 = t21 + t22;
    const real t24 = c.beta2 * s[1];
    const real t25 = t20 * t20;
    const real t26 = c.rest2 * t25;
    const real t27 = t24 + t26;
    const real t28 = square_root(t27);
    const real t29 = t28 + c.eps;
    const real t30 = t23 / t29;
    const real t31 = c.step_size * t30;
    const real t32 = p - t31;
    const real new_p = t32;
    const real new_g = t15;
    const real new_exp_avg = t23;
    const real new_exp_avg_sq = t27;
    p = new_p;
    g = new_g;
    s[0] = new_exp_avg;
    s[1] = new_exp_avg_sq;
  }
};

#define EACH_VARIANT(FUNCTION) \
  case 0: FUNCTION(Variant0); break; \
  case 1: FUNCTION(Variant1); break; \
  case 2: FUNCTION(Variant2); break;
