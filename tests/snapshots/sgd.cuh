// Written by fusedopt from the rules' own Python; see fusedopt/rules.
constexpr int HYPERPARAMETERS = 6;  // lr, momentum, dampening, weight_decay, loss_scale, clip_value
constexpr int SCALARS = 0;
constexpr int STATES = 1;
constexpr int CONSTANTS = 6;

// SGD(momentum=True, nesterov=False, maximize=False), float32
struct Variant0 {
  typedef float real;
  typedef float Parameter;
  typedef float Gradient;
  typedef float State;
  static constexpr int states = 1;  // momentum_buffer
  struct Constants { real lr, weight_decay, momentum, rest, first, grad_scale; };
  static __device__ void scalars(const double* h, double step, double grad_scale, const double* a,
                                 Constants& c, double* next) {
    const double t9 = double(1.0) - h[2];
    const bool t10 = step == double(1.0);
    const double t11 = grad_scale * h[4];
    const double new_lr = h[0];
    const double new_weight_decay = h[3];
    const double new_momentum = h[1];
    const double new_rest = t9;
    const double new_first = t10;
    const double new_grad_scale = t11;
    c.lr = real(new_lr);
    c.weight_decay = real(new_weight_decay);
    c.momentum = real(new_momentum);
    c.rest = real(new_rest);
    c.first = real(new_first);
    c.grad_scale = real(new_grad_scale);
  }
  static __device__ void update(const Constants& c, real& p, real& g, real* s) {
    const bool t10 = c.grad_scale != real(1.0);
    const real t11 = g / c.grad_scale;
    const real t12 = t10 ? t11 : g;
    const bool t14 = c.weight_decay != real(0.0);
    const real t15 = c.weight_decay * p;
    const real t16 = t12 + t15;
    const real t17 = t14 ? t16 : t12;
    const bool t18 = c.rest != real(1.0);
    const real t19 = c.rest * t17;
    const real t20 = t18 ? t19 : t17;
    const real t21 = c.momentum * s[0];
    const real t22 = t21 + t20;
    const real t23 = c.first ? t17 : t22;
    const real t24 = c.lr * t23;
    const real t25 = p - t24;
    const real new_p = t25;
    const real new_g = t12;
    const real new_momentum_buffer = t23;
    p = new_p;
    g = new_g;
    s[0] = new_momentum_buffer;
  }
};

#define EACH_VARIANT(FUNCTION) \
  case 0: FUNCTION(Variant0); break;
