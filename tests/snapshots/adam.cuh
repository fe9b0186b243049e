// Written by fusedopt from the rules' own Python; see fusedopt/rules.
constexpr int HYPERPARAMETERS = 8;  // lr, betas[0], betas[1], eps, weight_decay, loss_scale, clip_value, clip_norm
constexpr int SCALARS = 0;
constexpr int STATES = 3;
constexpr int CONSTANTS = 8;
constexpr int STAGES = 0;
constexpr int RESULTS = 1;

// Adam(amsgrad=False, maximize=False, decoupled_weight_decay=False), float32
struct Variant0 {
  typedef float real;
  typedef float Parameter;
  typedef float Gradient;
  typedef float State;
  static constexpr int states = 2;  // exp_avg, exp_avg_sq
  static constexpr unsigned reads = 0xf;  // p, g, the states
  static constexpr unsigned summed = 0x0;  // results of stages that scalars reads
  static constexpr unsigned spread = 0x0;  // and those of which an element has its row's
  struct Constants { real beta1, rest1, beta2, rest2, step_size, eps, decay, grad_scale; };
  static __device__ void scalars(const double* h, double step, double grad_scale, const double* a,
                                 const double* r, Constants& c, double* next) {
    const double t10 = power(h[2], step);
    const double t12 = double(1.0) - t10;
    const double t13 = square_root(t12);
    const double t14 = double(1.0) - h[1];
    const double t15 = double(1.0) - h[2];
    const double t16 = h[0] * t13;
    const double t17 = power(h[1], step);
    const double t18 = double(1.0) - t17;
    const double t19 = t16 / t18;
    const double t20 = h[3] * t13;
    const double t21 = grad_scale * h[5];
    const double new_beta1 = h[1];
    const double new_rest1 = t14;
    const double new_beta2 = h[2];
    const double new_rest2 = t15;
    const double new_step_size = t19;
    const double new_eps = t20;
    const double new_decay = h[4];
    const double new_grad_scale = t21;
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
  typedef double Parameter;
  typedef double Gradient;
  typedef double State;
  static constexpr int states = 2;  // exp_avg, exp_avg_sq
  static constexpr unsigned reads = 0xf;  // p, g, the states
  static constexpr unsigned summed = 0x0;  // results of stages that scalars reads
  static constexpr unsigned spread = 0x0;  // and those of which an element has its row's
  struct Constants { real beta1, rest1, beta2, rest2, step_size, eps, decay, grad_scale; };
  static __device__ void scalars(const double* h, double step, double grad_scale, const double* a,
                                 const double* r, Constants& c, double* next) {
    const double t10 = power(h[2], step);
    const double t12 = double(1.0) - t10;
    const double t13 = square_root(t12);
    const double t14 = double(1.0) - h[1];
    const double t15 = double(1.0) - h[2];
    const double t16 = h[0] * t13;
    const double t17 = power(h[1], step);
    const double t18 = double(1.0) - t17;
    const double t19 = t16 / t18;
    const double t20 = h[3] * t13;
    const double t21 = grad_scale * h[5];
    const double new_beta1 = h[1];
    const double new_rest1 = t14;
    const double new_beta2 = h[2];
    const double new_rest2 = t15;
    const double new_step_size = t19;
    const double new_eps = t20;
    const double new_decay = h[4];
    const double new_grad_scale = t21;
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
  typedef BFloat16 Parameter;
  typedef BFloat16 Gradient;
  typedef BFloat16 State;
  static constexpr int states = 2;  // exp_avg, exp_avg_sq
  static constexpr unsigned reads = 0xf;  // p, g, the states
  static constexpr unsigned summed = 0x0;  // results of stages that scalars reads
  static constexpr unsigned spread = 0x0;  // and those of which an element has its row's
  struct Constants { real beta1, rest1, beta2, rest2, step_size, eps, decay, grad_scale; };
  static __device__ void scalars(const double* h, double step, double grad_scale, const double* a,
                                 const double* r, Constants& c, double* next) {
    const double t10 = power(h[2], step);
    const double t12 = double(1.0) - t10;
    const double t13 = square_root(t12);
    const double t14 = double(1.0) - h[1];
    const double t15 = double(1.0) - h[2];
    const double t16 = h[0] * t13;
    const double t17 = power(h[1], step);
    const double t18 = double(1.0) - t17;
    const double t19 = t16 / t18;
    const double t20 = h[3] * t13;
    const double t21 = grad_scale * h[5];
    const double new_beta1 = h[1];
    const double new_rest1 = t14;
    const double new_beta2 = h[2];
    const double new_rest2 = t15;
    const double new_step_size = t19;
    const double new_eps = t20;
    const double new_decay = h[4];
    const double new_grad_scale = t21;
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
