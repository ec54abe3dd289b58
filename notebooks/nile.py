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
# # Two real series, end to end
#
# The annual flow of the Nile, with two gaps punched into it, and monthly CO₂ at Mauna Loa, which
# has gaps of its own. For each: write a model, fit it, look at what it learned, check it against
# the data, forecast.

# %%
import arviz as az
import jax
import matplotlib.pyplot as plt
import numpyro
import numpyro.distributions as dist

import ssmkit as sk

jax.config.update("jax_enable_x64", True)  # before anything is computed

# %% [markdown]
# ## The Nile
#
# A pandas series in; its dates stay with everything that comes out. What is `nan` is missing. Here
# we hide forty of the hundred years, and keep them for later.

# %%
nile = sk.data.load("nile")
gappy = nile.copy()
gappy["1891":"1910"] = float("nan")
gappy["1931":"1950"] = float("nan")
print(nile.attrs["units"])

# %% [markdown]
# ### Maximum likelihood
#
# The local level model: a level that walks at random, seen with noise,
#
# $$\mu_t = \mu_{t-1} + N(0, \sigma_\xi^2), \qquad y_t = \mu_t + N(0, \sigma_\epsilon^2).$$
#
# A *program* is a function that declares the parameters and returns the model. `numpyro.param`
# gives a name, a start and a range. The level is never asked for a starting value: it starts
# diffuse, and the Kalman filter treats that exactly.


# %%
def level():
    positive = dist.constraints.positive
    return sk.models.LocalLevel(
        level_variance=numpyro.param("level", 1e3, constraint=positive),
        noise_variance=numpyro.param("noise", 1e4, constraint=positive),
    )


fit = sk.infer(0, sk.GradientFit(evidence=sk.Kalman()), level, gappy)
print(fit.summary())

# %% [markdown]
# The interval of the level's variance is wide and lopsided: sixty years say little about how fast
# the level moves. Keep that in mind for the forecast below.
#
# In the gaps the smoothed band widens; it is a band for the level, not for single years. The open
# circles are the years that the fit has not seen.

# %%
ax = sk.plots.states(fit, "level")
hidden = nile[gappy.isna()]
ax.plot(hidden.index, hidden, "o", mfc="none", color="grey", ms=4, label="hidden from the fit")
ax.set_ylabel("flow, 10⁸ m³ a year")
plt.show()

# %% [markdown]
# ### Does the model hold?
#
# One-step residuals, standardised: under the right model they are independent standard normals.

# %%
sk.plots.residuals(fit)
plt.show()

# %% [markdown]
# ### A forecast

# %%
ahead = sk.forecast(1, fit, num_steps=10)
ax = sk.plots.forecast(ahead, fit, last=60)
ax.set_ylabel("flow, 10⁸ m³ a year")
plt.show()
ahead.to_frame().round(1).head(3)

# %% [markdown]
# ### The same model, Bayesian
#
# `numpyro.sample` in place of `numpyro.param` gives a prior, and `sk.NUTS` in place of
# `sk.GradientFit` draws from the posterior. The states are integrated out exactly by the Kalman
# filter; NUTS sees the two parameters only.


# %%
def level_with_priors():
    return sk.models.LocalLevel(
        level_variance=numpyro.sample("level_std", dist.HalfNormal(100.0)) ** 2,
        noise_variance=numpyro.sample("noise_std", dist.HalfNormal(300.0)) ** 2,
    )


engine = sk.NUTS(evidence=sk.Kalman(), num_warmup=500, num_samples=1000, num_chains=2)
posterior = sk.infer(2, engine, level_with_priors, gappy)
print(posterior.summary())

# %% [markdown]
# Forecasts of this posterior average over its draws, so their bands hold the uncertainty of the
# parameters too.

# %%
wider = sk.forecast(3, posterior, num_steps=10)
last = {"fitted point": ahead.to_frame().iloc[-1], "draws": wider.to_frame().iloc[-1]}
for name, row in last.items():
    print(f"flow in {row.name.year}, {name}: {row['mean']:.0f} ± {row['std']:.0f}")

# %% [markdown]
# ### ArviZ
#
# The export holds equally weighted joint draws of parameters and states, with dates. It is an
# `InferenceData` on ArviZ 0.2x and a `DataTree` on 1.x; the lines below are the same on both. Paths
# of states were computed for 200 of the draws, and the group `posterior` holds these; R-hat and ESS
# of all draws are in the summary above.

# %%
data = posterior.to_arviz()
az.summary(data, var_names=["level_std", "noise_std"])

# %%
az.plot_trace(data, var_names=["level_std", "noise_std"])
plt.show()

# %%
draws = data["posterior"]["states"].sel(state="level", time="1900-01-01")
print(f"level in 1900, inside a gap: {float(draws.mean()):.0f} ± {float(draws.std()):.0f}")

# %% [markdown]
# ## CO₂ at Mauna Loa
#
# Monthly means since 1958; five months were never measured. Components add up with `+`: a trend
# whose slope changes slowly, and a seasonal pattern that does not change.

# %%
co2 = sk.data.load("co2")
print(f"{len(co2)} months, {int(co2.isna().sum())} missing, in {co2.attrs['units']}")


def variance(name, start):
    return numpyro.param(name, start, constraint=dist.constraints.positive)


def trend_and_season():
    return sk.models.LocalLinearTrend(
        level_variance=variance("level_variance", 0.05),
        slope_variance=variance("slope_variance", 1e-5),
        noise_variance=variance("noise_variance", 0.02),
    ) + sk.models.Seasonal(period=12, variance=0.0)


engine = sk.GradientFit(evidence=sk.Kalman(), num_starts=1)
monthly = sk.infer(0, engine, trend_and_season, co2)
print(monthly.summary())

# %% [markdown]
# The Ljung–Box test leaves some doubt: the residuals may still be correlated. Adding
# `sk.models.AutoRegressive(...)` takes up what persists for a few months, and lowers AIC by 7; the
# command `ssmkit demo` fits that model.

# %%
axes = sk.plots.components(monthly)
axes[0].set_ylabel("CO₂, ppm")
plt.show()

# %% [markdown]
# The trend's slope is a state like any other, in ppm a month; twelve times it is ppm a year.

# %%
slope = monthly.states.to_frame()["slope mean"] * 12
slope.iloc[[60, 240, 480]].round(2)

# %%
ax = sk.plots.forecast(sk.forecast(1, monthly, num_steps=36), monthly)
ax.set_ylabel("CO₂, ppm")
plt.show()
