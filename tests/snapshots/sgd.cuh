// Written by fusedopt from the rules' own Python; see fusedopt/rules.
constexpr int HYPERPARAMETERS = 8;  // lr, momentum, dampening, weight_decay, loss_scale, clip_value, clip_norm, seed
constexpr int SCALARS = 0;
constexpr int STATES = 1;
constexpr int SEED = 7;
constexpr int CONSTANTS = 6;
constexpr int STAGES = 0;
constexpr int RESULTS = 1;

// SGD(momentum=True, nesterov=False, maximize=False), float32
struct Variant0 {
  typedef float real;
  typedef Streams<Plain<float>, Plain<float>, Plain<float>> Kept;
  static constexpr int states = 1;  // momentum_buffer
  static constexpr unsigned reads = 0x7;  // p, g, the states
  static constexpr unsigned summed = 0x0;  // results of stages that scalars reads
  static constexpr unsigned spread = 0x0;  // and those of which an element has its row's
  struct Constants { real lr, weight_decay, momentum, rest, first, grad_scale; };
  static __device__ void scalars(const double* h, double step, double grad_scale, const double* a,
                                 const double* r, Constants& c, double* next) {
    const double t11 = double(1.0) - h[2];
    const bool t12 = step == double(1.0);
    const double t13 = grad_scale * h[4];
    const double new_lr = h[0];
    const double new_weight_decay = h[3];
    const double new_momentum = h[1];
    const double new_rest = t11;
    const double new_first = t12;
    const double new_grad_scale = t13;
    c.lr = real(new_lr);
    c.weight_decay = real(new_weight_decay);
    c.momentum = real(new_momentum);
    c.rest = real(new_rest);
    c.first = real(new_first);
    c.grad_scale = real(new_grad_scale);
  }
  static __device__ void update(const Constants& c, real& p, real& g, real* s, const real* r) {
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
