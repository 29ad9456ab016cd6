"""What each arm leaves and costs against bits, and how much the latents of the directions use both ends."""

# pandas' annotations call df[...] a union of everything, so these are off in this file.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIndexIssue=false

from matplotlib.axes import Axes

from rayscope.drawing import COLOURS, MARKERS, label, log_axis, panels
from rayscope.studies.rays_vs_directions.records import DIRECTIONS, Records

SHADES = ("#0072b2", "#d55e00", "#56b4e9", "#e69f00", "#009e73", "#7a7a7a")  # rays blue, directions orange


def figure(records: Records, k: int, seed: int) -> str:
    """A row per site: dCE and FVU against bits, and polarity against density of the DIRECTIONS' latents (k, seed)."""
    table = records.table()
    real = table[(table["stream"] == "real") & (table["position0"] == "excluded")]
    real = real.assign(arm=real["arm"].where(real["coder"] == "own", real["arm"] + " by " + real["coder"]))
    hooks = list(dict.fromkeys(real["site"]))
    with panels(3 * len(hooks), 2.8, columns=3) as (axes, svg):
        for row, hook in enumerate(hooks):
            for one, metric in zip(axes[3 * row :], ("dce", "fvu"), strict=False):
                here = real[(real["site"] == hook) & (real["metric"] == metric)]
                arms = [arm for arm in sorted(set(here["arm"])) if " by " not in arm]
                for arm, group in here.groupby("arm"):
                    place, line = arms.index(str(arm).partition(" by ")[0]), "--" if " by " in str(arm) else "-"
                    mean = group.groupby("k")[["bits", "value"]].mean()
                    look = {"color": SHADES[place], "marker": MARKERS[place], "ls": line, "label": str(arm)}
                    one.plot(mean["bits"], mean["value"], **look)
                log_axis(one, "x", "bits per token")
                one.set_ylabel({"dce": "dCE, nats", "fvu": "FVU"}[metric])
                one.set_title(label(hook))
            scatter(axes[3 * row + 2], records, hook, k, seed)
        return svg()


def scatter(axes: Axes, records: Records, hook: str, k: int, seed: int) -> None:
    """Latents that ever fired, the most energetic 1000."""
    for (stream, site, arm), polarity in records.polarities.items():
        if (site, arm.k, arm.seed) != (hook, k, seed) or arm.method != DIRECTIONS:
            continue
        energy_L = polarity.energy_P2L.sum((0, 1))
        top = energy_L.argsort(descending=True)[:1000]
        top = top[energy_L[top] > 0]
        colour = COLOURS["directions" if stream == "real" else "control"]
        title = {"real": f"latent of B, k {k}", "sign_flip": "the same, signs flipped"}[stream]
        axes.plot(polarity.density_L[top], polarity.polarity_L[top], ".", ms=2.5, color=colour, alpha=0.5, label=title)
    log_axis(axes, "x", "density")
    axes.set_ylabel("polarity")
    axes.set_ylim(-0.02, 0.52)
