// Written by fusedopt from the rules' own Python; see fusedopt/rules.
constexpr int HYPERPARAMETERS = 5;  // lr, betas[0], betas[1], eps, weight_decay
constexpr int SCALARS = 0;
constexpr int STATES = 3;
constexpr int CONSTANTS = 8;

// Adam(amsgrad=False, maximize=False, decoupled_weight_decay=False), float32
struct Variant0 {
  typedef float real;
  typedef float Parameter;
  typedef float Gradient;
  typedef float State;
  static constexpr int states = 2;  // exp_avg, exp_avg_sq
  struct Constants { real beta1, rest1, beta2, rest2, step_size, eps, decay, grad_scale; };
  static __device__ void scalars(const double* h, double step, const double* a, Constants& c, double* next) {
    const double t6 = power(h[2], step);
    const double t8 = double(1.0) - t6;
    const double t9 = square_root(t8);
    const double t10 = double(1.0) - h[1];
    const double t11 = double(1.0) - h[2];
    const double t12 = h[0] * t9;
    const double t13 = power(h[1], step);
    const double t14 = double(1.0) - t13;
    const double t15 = t12 / t14;
    const double t16 = h[3] * t9;
    const double new_beta1 = h[1];
    const double new_rest1 = t10;
    const double new_beta2 = h[2];
    const double new_rest2 = t11;
    const double new_step_size = t15;
    const double new_eps = t16;
    const double new_decay = h[4];
    c.beta1 = real(new_beta1);
    c.rest1 = real(new_rest1);
    c.beta2 = real(new_beta2);
    c.rest2 = real(new_rest2);
    c.step_size = real(new_step_size);
    c.eps = real(new_eps);
    c.decay = real(new_decay);
  }
  static __device__ void update(const Constants& c, real& p, real& g, real* s) {
    const bool t4 = c.grad_scale != real(1.0);
    const real t5 = g / c.grad_scale;
    const real t6 = t4 ? t5 : g;
    const bool t17 = c.decay != real(0.0);
    const real t18 = c.decay * p;
    const real t19 = t6 + t18;
    const real t20 = t17 ? t19 : t6;
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
    const real new_g = t6;
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
  struct Constants { real beta1, rest1, beta2, rest2, step_size, eps, decay, grad_scale; };
  static __device__ void scalars(const double* h, double step, const double* a, Constants& c, double* next) {
    const double t6 = power(h[2], step);
    const double t8 = double(1.0) - t6;
    const double t9 = square_root(t8);
    const double t10 = double(1.0) - h[1];
    const double t11 = double(1.0) - h[2];
    const double t12 = h[0] * t9;
    const double t13 = power(h[1], step);
    const double t14 = double(1.0) - t13;
    const double t15 = t12 / t14;
    const double t16 = h[3] * t9;
    const double new_beta1 = h[1];
    const double new_rest1 = t10;
    const double new_beta2 = h[2];
    const double new_rest2 = t11;
    const double new_step_size = t15;
    const double new_eps = t16;
    const double new_decay = h[4];
    c.beta1 = real(new_beta1);
    c.rest1 = real(new_rest1);
    c.beta2 = real(new_beta2);
    c.rest2 = real(new_rest2);
    c.step_size = real(new_step_size);
    c.eps = real(new_eps);
    c.decay = real(new_decay);
  }
  static __device__ void update(const Constants& c, real& p, real& g, real* s) {
    const bool t4 = c.grad_scale != real(1.0);
    const real t5 = g / c.grad_scale;
    const real t6 = t4 ? t5 : g;
    const bool t17 = c.decay != real(0.0);
    const real t18 = c.decay * p;
    const real t19 = t6 + t18;
    const real t20 = t17 ? t19 : t6;
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
    const real new_g = t6;
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
  struct Constants { real beta1, rest1, beta2, rest2, step_size, eps, decay, grad_scale; };
  static __device__ void scalars(const double* h, double step, const double* a, Constants& c, double* next) {
    const double t6 = power(h[2], step);
    const double t8 = double(1.0) - t6;
    const double t9 = square_root(t8);
    const double t10 = double(1.0) - h[1];
    const double t11 = double(1.0) - h[2];
    const double t12 = h[0] * t9;
    const double t13 = power(h[1], step);
    const double t14 = double(1.0) - t13;
    const double t15 = t12 / t14;
    const double t16 = h[3] * t9;
    const double new_beta1 = h[1];
    const double new_rest1 = t10;
    const double new_beta2 = h[2];
    const double new_rest2 = t11;
    const double new_step_size = t15;
    const double new_eps = t16;
    const double new_decay = h[4];
    c.beta1 = real(new_beta1);
    c.rest1 = real(new_rest1);
    c.beta2 = real(new_beta2);
    c.rest2 = real(new_rest2);
    c.step_size = real(new_step_size);
    c.eps = real(new_eps);
    c.decay = real(new_decay);
  }
  static __device__ void update(const Constants& c, real& p, real& g, real* s) {
    const bool t4 = c.grad_scale != real(1.0);
    const real t5 = g / c.grad_scale;
    const real t6 = t4 ? t5 : g;
    const bool t17 = c.decay != real(0.0);
    const real t18 = c.decay * p;
    const real t19 = t6 + t18;
    const real t20 = t17 ? t19 : t6;
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
    const real new_g = t6;
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
