# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Volatility by particles
#
# Daily returns of the S&P 500 and a model that no Kalman filter can serve: the state is the log
# variance of the returns. A particle filter and smoother, how good they are, the parameters by
# particle Metropolis–Hastings, and a stream that goes on from the fit, day by day, with an alarm.

# %%
import pathlib
import tempfile

import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

import ssmkit as sk

jax.config.update("jax_enable_x64", True)  # before anything is computed

# %% [markdown]
# ## The data
#
# 500 trading days to learn from, and the 100 after them held back for the stream. The model has
# returns with mean zero, so the mean is subtracted: that of the first 500, since the others are
# not known yet.

# %%
returns = sk.data.load("sp500").iloc[-600:]
mean = returns.iloc[:500].mean()
past, future = returns.iloc[:500] - mean, returns.iloc[500:] - mean
print(f"{past.index[0]:%d %B %Y} to {past.index[-1]:%d %B %Y}, then to {future.index[-1]:%d %B %Y}")
print(f"{returns.attrs['units']}; mean {mean:.3f}, standard deviation {past.std():.2f}")

# %% [markdown]
# ## Filter and smoother
#
# Stochastic volatility,
#
# $$x_t \sim N(\mu + \phi (x_{t-1} - \mu), \sigma^2), \qquad y_t \sim N(0, e^{x_t}),$$
#
# at given parameters first; they are learned below. `sk.SMC` moves a cloud of particles through
# the series and then draws paths back through it.

# %%
model = sk.models.StochasticVolatility(mean=-1.3, persistence=0.92, scale=0.45)
posterior = sk.infer(0, sk.SMC(num_particles=2000), model, past)
print(posterior)

# %% [markdown]
# The volatility, $e^{x_t/2}$, is in per cent a day. Quantiles go through a monotone function, so
# the band of the log variance gives that of the volatility. The filter knows the returns up to
# each day, the smoother all of them.

# %%
levels = np.array([0.05, 0.5, 0.95])
filtered, smoothed = (
    np.exp(np.asarray(belief.quantile(levels)) / 2)
    for belief in (posterior.filtered, posterior.states)
)
fig, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
ax.plot(past.index, past.abs(), ".", color="grey", ms=3, label="size of the return")
ax.fill_between(past.index, smoothed[0], smoothed[2], alpha=0.25, label="smoothed, 90 %")
ax.plot(past.index, smoothed[1], label="smoothed, median")
ax.plot(past.index, filtered[1], lw=0.8, color="C1", label="filtered, median")
ax.set_ylabel("per cent a day")
ax.legend(frameon=False, loc="upper left", ncols=2)
plt.show()

# %% [markdown]
# ## Does it hold?
#
# `sk.diagnose` asks two things. Of the model: where did each return fall in its prediction? These
# probabilities (PIT) are uniform and independent when the model is right. Of the particles: how
# many count, and are their weights tame ($\hat k$ below 0.7)?

# %%
diagnosis = sk.diagnose(posterior)
print(diagnosis)

# %%
table = diagnosis.to_frame()
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
left.hist(table["pit"], bins=20, density=True, color="C0", alpha=0.6)
left.axhline(1.0, color="grey", lw=0.8)
left.set_title("where the returns fell (PIT)", fontsize=10)
right.plot(table.index, table["ess"], lw=0.7)
right.set_ylim(0, 2000)
right.set_title("effective particles, of 2000", fontsize=10)
right.tick_params(axis="x", rotation=30)
plt.show()

# %% [markdown]
# ## The evidence, and its error
#
# The evidence of a particle filter is unbiased, and random. One run estimates its own standard
# error, from the families of the first particles. Over hundreds of steps few families survive (this
# run: see below), so that this estimate is rough, and below five of them it is `nan`. Runs with
# other keys measure the error of a single run better, and their mean has a smaller one.

# %%
print(f"{posterior.log_evidence:.2f} ± {posterior.log_evidence_se:.2f} nats, from one run")
print(sk.replicate_evidence(1, posterior, num_replicates=20))
print(f"first ancestors that survive: {posterior.diagnostics['surviving_ancestors']}")

# %% [markdown]
# ## Another proposal
#
# The bootstrap filter proposes from the transition and does not look at the return. `sk.Linearised`
# fits a Gaussian to both. Same particles, same evidence, other errors:

# %%
for name, proposal in {"bootstrap": None, "linearised": sk.Linearised()}.items():
    engine = sk.SMC(num_particles=500, proposal=proposal)
    again = sk.replicate_evidence(2, sk.infer(0, engine, model, past, keep="final"), 50)
    print(
        f"{name:10}  {again.log_evidence:.2f} ± {again.log_evidence_se:.2f} nats by 50 runs,",
        end="",
    )
    print(f" {again.per_run_std:.2f} apart")

# %% [markdown]
# The guided filter's runs are a little closer together at most, and take about twice as long: twice
# the particles would have helped more. One return says little about the variance of that day; a
# proposal pays where observations are precise.
#
# ## The parameters
#
# A program with priors, and `sk.ParticleMetropolisHastings`: a random walk on the parameters that
# accepts by the estimated evidence. Because the estimate is unbiased, the draws are from the exact
# posterior, with any number of particles. This run is too short, so that the page takes a minute:
# the chains have not mixed, and the summary says so. `ssmkit demo` has a longer one.


# %%
def volatility():
    return sk.models.StochasticVolatility(
        mean=numpyro.sample("mean", dist.Normal(0.0, 1.0)),
        persistence=numpyro.sample("persistence", dist.Beta(20.0, 1.5)),
        scale=numpyro.sample("scale", dist.HalfNormal(0.5)),
    )


engine = sk.ParticleMetropolisHastings(
    sk.SMC(num_particles=200, smoother="backward_mcmc", num_paths=50),
    num_warmup=300,
    num_samples=400,
    num_particles=200,
    num_state_draws=30,
)
fit = sk.infer(3, engine, volatility, past, progress=False)
print(fit.summary())

# %%
fig, axes = plt.subplots(1, 3, figsize=(8, 2.6), layout="constrained")
for ax, (name, draws) in zip(axes, fit.params.values.items(), strict=True):
    ax.plot(np.asarray(draws).T, lw=0.6, alpha=0.8)
    ax.set_title(name, fontsize=10)
    ax.set_xlabel("draw")
plt.show()

# %% [markdown]
# ## A stream that goes on from the fit
#
# The hundred days that were held back arrive one by one. Each of the parameter draws keeps a
# particle filter of its own, begun where the fit ended, and counts by how well it predicts. Before
# each day: the forecast. After it: the update. `run_length=1000` sets an alarm that, as long as the
# model holds, is raised once in a thousand days or less often, in the mean.

# %%
flow = sk.stream(4, sk.SMC(num_particles=500), fit, run_length=1000)
forecasts, alarms = [], []
for today in future.iloc[:50]:
    forecasts.append(flow.predict(1).observations.quantile(levels)[:, 0])
    flow.update(today)
    alarms.append(flow.alarm.statistic)
print(flow)

# %% [markdown]
# ### Save, and go on
#
# A file holds the stream, alarm and all, as data and never as code. Another process would read it
# and go on, bit for bit.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = flow.save(pathlib.Path(folder) / "sp500.stream")
    print(f"{path.stat().st_size / 1e3:.0f} kB")
    again = sk.load_stream(path)

for today in future.iloc[50:]:
    forecasts.append(again.predict(1).observations.quantile(levels)[:, 0])
    belief = again.update(today)
    alarms.append(again.alarm.statistic)

uninterrupted = flow.update_many(future.iloc[50:])
print("same as without a break:", bool((belief.mean() == uninterrupted.mean()[-1]).all()))

# %% [markdown]
# ### What was forecast, and what came

# %%
low, middle, high = np.array(forecasts).T
fig, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
ax.fill_between(future.index, low, high, alpha=0.25, label="forecast of the day before, 90 %")
outside = (future < low) | (future > high)
ax.plot(future.index, future, ".", color="grey", label="return")
ax.plot(future.index[outside], future[outside], "o", color="C3", ms=4, label="outside")
ax.set_ylabel("return less its mean, per cent")
ax.legend(frameon=False, loc="lower left")
plt.show()
print(f"{outside.sum()} of {len(future)} days outside, where 10 are expected")

# %% [markdown]
# ### The alarm

# %%
fig, ax = plt.subplots(figsize=(8, 2.6), layout="constrained")
ax.semilogy(future.index, alarms)
ax.axhline(1000, color="C3", lw=1, label="raised above")
ax.set_ylabel("bets against the model")
ax.legend(frameon=False)
plt.show()
print(again.alarm)

# %% [markdown]
# While the model holds the bets grow by one a day in the mean, and mostly stay below that. In
# October 2018 and before Christmas some returns in a row were further out than forecast, and the
# bets won for a while; the volatility follows within days, and the alarm is not raised. Nor are the
# misses strange: ten of a hundred are expected, give or take three.
#
# ### The next month

# %%
ax = sk.plots.forecast(flow.predict(20))
ax.plot(future.index[-40:], future.iloc[-40:], "o-", color="grey", ms=3, lw=0.8)
ax.set_ylabel("return less its mean, per cent")
plt.show()
