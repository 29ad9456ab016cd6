"""What a reader is told of each metric: its heading, unit, meaning and form."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    name: str
    heading: str
    unit: str
    meaning: str
    form: str = "{:.3f}"

    def show(self, value: float) -> str:
        return "" if math.isnan(value) else self.form.format(value)


METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "l0",
            "L0",
            "latents/token",
            "Mean number of non-zero codes of a token. A kind whose number of codes varies, such as BatchTopK, has k "
            "of them on the validation text that its threshold was set on, and on other text another number.",
            "{:.1f}",
        ),
        Metric(
            "bits",
            "bits",
            "bits/token",
            "Length of one token's code: which latents are on (log2 of L choose k), the bits of each coefficient and "
            "one more for its sign if it has one, and, if the number of codes varies, the entropy of that number; "
            "pca_prefix and pca_transform always use the same components and pay for coefficients alone. Blank for "
            "codecs.",
            "{:.0f}",
        ),
        Metric(
            "bits_entropy",
            "bits, entropy",
            "bits/token",
            "The same with the latents' own firing frequencies on validation text in place of L choose k: a code that "
            "uses few latents often is shorter. Latents are coded one by one, as if they fired independently.",
            "{:.0f}",
        ),
        Metric(
            "fvu",
            "FVU",
            "fraction of variance",
            "Fraction of variance unexplained: squared error over squared distance from the mean, both summed over all "
            "vectors. 0 is perfect, 1 is no better than the mean. Lower is better.",
        ),
        Metric(
            "dce",
            "dCE",
            "nats/token",
            "Rise of the model's cross-entropy when the site's activations are replaced by their reconstruction, over "
            "every predicted token: the primary number. Lower is better.",
        ),
        Metric(
            "kl", "KL", "nats/token", "KL divergence from the model's own next-token distribution to the spliced one."
        ),
        Metric(
            "loss_recovered_mean",
            "loss recovered, mean",
            "share",
            "Share won back of the loss that replacing activations by their mean costs. Never compare it across sites.",
        ),
        Metric(
            "loss_recovered_zero",
            "loss recovered, zero",
            "share",
            "The same against replacing activations by zero. Never compare it across sites.",
        ),
        Metric("dead", "dead", "share of latents", "Latents that fired on none of the evaluated tokens.", "{:.1%}"),
        Metric(
            "density",
            "density",
            "share of tokens",
            "Share of tokens on which a latent fires, mean over latents.",
            "{:.2%}",
        ),
        Metric(
            "l2_ratio",
            "l2 ratio",
            "ratio",
            "Length of the reconstruction over that of the vector; below 1 is shrinkage.",
        ),
    )
}
