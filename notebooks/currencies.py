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
# # Currencies, with a look ahead
#
# Monthly returns of four currencies, and a volatility for each that nobody observes. A bootstrap
# filter chooses its particles by the past alone: few of them turn out to be ancestors of anything
# once the future is known. `sk.SIXO` learns a *twist*, what is to come as seen by a state, and
# chooses by that as well. Both get the same number of particles here.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax

import ssmkit as sk

jax.config.update("jax_enable_x64", True)  # before anything is computed

# %% [markdown]
# ## The data
#
# Twelve years to learn from, and the four after them for later. The model has returns with mean
# zero, so the means of the first twelve years are subtracted.

# %%
names = ["eur", "jpy", "gbp", "aud"]
rates = sk.data.load("currencies")[names]
past, future = rates.loc["2004-02":"2016-01"], rates.loc["2016-02":"2020-01"]
past, future = past - past.mean(), future - past.mean()
print(f"{len(past)} months and {len(future)}; {rates.attrs['units']['eur']}")

# %%
fig, axes = plt.subplots(2, 2, figsize=(8, 4), sharex=True, sharey=True, layout="constrained")
for ax, name in zip(axes.flat, names, strict=True):
    ax.plot(past.index, past[name], lw=0.9, label="to learn from")
    ax.plot(future.index, future[name], lw=0.9, label="for later")
    ax.set_title(name, fontsize=10)
axes[0, 0].legend(frameon=False, fontsize=8)
fig.supylabel("per cent a month", fontsize=10)
plt.show()

# %% [markdown]
# ## The model
#
# $$x_t \sim N(\phi\, x_{t-1}, \sigma^2), \qquad y_t \sim N(0, \beta^2 e^{x_t})$$
#
# for each currency. The mean of the states is held at zero: it and $\beta$ say the same. The
# parameters are `numpyro.param` sites, so SIXO fits them along with the twist. Learning alternates:
# the twist on series that are simulated from the model as it stands, then the parameters by the
# bound that the twisted filter gives. Nothing in this model joins the currencies, so the twist need
# not either: a diagonal quadratic, for which the proposal takes no matrices.


# %%
def volatilities(spread):
    ones = np.ones(len(spread))
    positive, inside = dist.constraints.positive, dist.constraints.interval(0.0, 0.995)
    return sk.models.MultivariateStochasticVolatility(
        mean=0.0 * ones,
        persistence=numpyro.param("persistence", 0.9 * ones, constraint=inside),
        scale=numpyro.param("scale", 0.3 * ones, constraint=positive),
        beta=numpyro.param("beta", spread, constraint=positive),
    )


program = sk.program(volatilities, past.std().to_numpy())
engine = sk.SIXO(
    num_particles=128,
    twist=sk.learned.Twist(sk.learned.Recurrent(16), sk.learned.Quadratic(diagonal=True)),
    objective=sk.objectives.SIXO(steps=40, optimizer=sk.optimizer(optax.adam, 1e-2)),
    twist_learning=sk.objectives.DensityRatio(steps=60),
    rounds=6,
    patience=3,
    smoother="genealogy",
)
fit = sk.infer(0, engine, program, past, progress=False)
for name, values in fit.params.mean().items():
    print(f"{name:12}", dict(zip(names, np.round(np.asarray(values), 2).tolist(), strict=True)))

# %% [markdown]
# ## What the classifier has learned
#
# The twist is a classifier: does this state belong to this future? Who learns nothing loses log 2.
# The dashed line is what the classifier *believes* it loses: close to what it does lose when it is
# right about how sure it may be. To the right the evidence by 64 particles, on random numbers that
# learning does not use. After three rounds that do not improve on it learning ends (`patience`),
# and the best round counts.

# %%
history = fit.diagnostics["history"]
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
left.plot(history["round"], history["classifier_loss"], "o-", ms=3, label="loss")
left.plot(history["round"], history["classifier_floor"], "--", label="believed floor")
left.axhline(np.log(2), color="grey", lw=0.8)
left.text(
    history["round"][-1],
    np.log(2) - 0.002,
    "log 2: learned nothing",
    ha="right",
    va="top",
    fontsize=8,
)
left.set_ylabel("nats")
left.legend(frameon=False, loc="center right")
right.plot(history["round"], history["held_out_bound"], "o-", ms=3, color="C2")
right.set_ylabel("held-out bound, nats")
for ax in (left, right):
    ax.set_xlabel("round")
plt.show()

# %% [markdown]
# ## Before and after
#
# The same model, the same number of particles, with and without the twist. Both draw paths by
# following ancestors (`smoother="genealogy"`), which shows what becomes of them: for most of
# the years the paths of the bootstrap filter are a handful.

# %%
bootstrap = sk.infer(1, sk.SMC(num_particles=128, smoother="genealogy"), fit.model, past)
paths = {
    "bootstrap": np.asarray(bootstrap.states.sample(2, 128)),
    "SIXO": np.asarray(fit.states.sample(2, 128)),
}
fig, axes = plt.subplots(2, 1, figsize=(8, 4.6), sharex=True, sharey=True, layout="constrained")
for ax, (name, drawn) in zip(axes, paths.items(), strict=True):
    ax.plot(past.index, drawn[:, :, 0].T, color="C0", lw=0.5, alpha=0.25)
    ax.set_title(f"{name}: 128 paths of the euro's log variance", fontsize=10)
plt.show()

# %%
fig, ax = plt.subplots(figsize=(8, 2.8), layout="constrained")
for name, drawn in paths.items():
    ax.semilogy(past.index, [len(np.unique(at[:, 0])) for at in drawn.swapaxes(0, 1)], label=name)
ax.set_ylabel("distinct states, of 128 paths")
ax.set_yticks([1, 2, 5, 10, 20, 50, 100], [1, 2, 5, 10, 20, 50, 100])
ax.minorticks_off()
ax.legend(frameon=False)
plt.show()
for name, posterior in {"bootstrap": bootstrap, "SIXO": fit}.items():
    print(f"{name:10} first ancestors: {posterior.diagnostics['surviving_ancestors']} of 128")

# %% [markdown]
# ## The evidence, and its error
#
# Both evidences are unbiased, whatever the twist: what it adds to the choice of ancestors is
# divided out after it. So models can be compared by either, but not with the same error. The third
# twist is *computed*, by a Gaussian approximation around the most probable path: nothing is
# learned, and for this model it is the best of the three. It serves models with Gaussian
# transitions; where it does, try it first. A learned twist asks for no more than a model that can
# be simulated.

# %%
computed = sk.SIXO(num_particles=128, twist=sk.learned.Analytic(), rounds=1, smoother=None)
analytic = sk.infer(3, computed, fit.model, past)
runs = {
    name: sk.replicate_evidence(4, posterior, num_replicates=10)
    for name, posterior in {"bootstrap": bootstrap, "SIXO": fit, "computed": analytic}.items()
}
for name, found in runs.items():
    print(
        f"{name:10} {found.log_evidence:.2f} ± {found.log_evidence_se:.2f} nats by 10 runs,",
        f"{found.per_run_std:.2f} apart",
    )

# %%
fig, ax = plt.subplots(figsize=(8, 2.2), layout="constrained")
for row, found in enumerate(runs.values()):
    ax.plot(found.values, np.full(found.values.size, -row), "|", ms=14, mew=1.2)
ax.set_yticks([0, -1, -2], list(runs))
ax.set_ylim(-2.6, 0.6)
ax.set_xlabel("log evidence of single runs, nats")
plt.show()

# %% [markdown]
# ## From both sides
#
# How far may the evidence be from the truth? On data that are simulated from the model the path
# that made them is known, and a run around that path bounds the log evidence from above, in the
# mean.

# %%
print(sk.evidence_bounds(5, engine, fit.model, 72, learned=fit.learned, num_series=16))

# %% [markdown]
# ## The volatilities
#
# The smoothed volatility, $\beta e^{x_t/2}$; quantiles go through a monotone function.

# %%
beta = np.asarray(fit.model.beta)
low, middle, high = beta * np.exp(np.asarray(fit.states.quantile(np.array([0.05, 0.5, 0.95]))) / 2)
fig, axes = plt.subplots(2, 2, figsize=(8, 4.4), sharex=True, sharey=True, layout="constrained")
for i, (ax, name) in enumerate(zip(axes.flat, names, strict=True)):
    ax.plot(past.index, past[name].abs(), ".", color="grey", ms=3)
    ax.fill_between(past.index, low[:, i], high[:, i], alpha=0.3)
    ax.plot(past.index, middle[:, i])
    ax.set_title(name, fontsize=10)
fig.supylabel("per cent a month", fontsize=10)
plt.show()

# %% [markdown]
# ## Other series
#
# The twist reads a series, so it serves others: the four years that were held back, without any
# learning. The parameters stay as they were fitted.

# %%
later = sk.infer(6, engine, program, future, learned=fit.learned)
plain = sk.infer(6, sk.SMC(num_particles=128, smoother=None), fit.model, future)
for name, posterior in {"SIXO": later, "bootstrap": plain}.items():
    print(f"{name:10} {posterior.log_evidence:.2f} ± {posterior.log_evidence_se:.2f} nats")

# %% [markdown]
# ## And everywhere else
#
# The posterior is one like any other: it forecasts, it goes to ArviZ, and a stream by `sk.SMC` goes
# on from it. SIXO itself cannot: it reads what is to come.

# %%
print(sk.forecast(7, fit, num_steps=3).to_frame().head(3))
stream = sk.stream(8, sk.SMC(num_particles=500), fit)
print(stream.update(future.iloc[0].to_numpy()).mean())
exported = fit.to_arviz()
print(exported["posterior"]["states"].dims, dict(exported["posterior"]["states"].sizes))
