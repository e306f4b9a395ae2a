import numpy as np
import pytest
import torch
from torch import Tensor

from callbacks.pure.whitening import whitening_filters


def smooth_images(scale: float = 1.0) -> Tensor:
    """120 images whose neighbouring pixels are alike, as a photo's are."""
    noise = torch.randn(120, 3, 26, 26, generator=torch.Generator().manual_seed(0))
    return scale * torch.nn.functional.avg_pool2d(noise, 3, stride=1) * 3


def test_their_outputs_are_uncorrelated_pairs_of_opposite_sign_with_he_s_mean_square():
    images = smooth_images()
    filters = whitening_filters(images.split(50), 12, 5, 2)
    windows = np.lib.stride_tricks.sliding_window_view(images.double().numpy(), (5, 5), axis=(2, 3))[:, :, ::2, ::2]
    patches = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 75)
    outputs = patches @ filters.double().numpy().reshape(12, 75).T
    np.testing.assert_array_equal(filters[0::2], -filters[1::2])
    # 2 less the little that keeps noise small: the first axes have many times the mean variance
    np.testing.assert_allclose(
        outputs.T @ outputs / len(outputs), 2 * np.kron(np.eye(6), [[1, -1], [-1, 1]]), atol=0.02
    )
    variances = np.linalg.eigvalsh(patches.T @ patches / len(patches))[::-1]
    norms = (filters.double()[0::2].flatten(1).norm(dim=1).numpy() / 2**0.5) ** -2
    np.testing.assert_allclose(norms, variances[:6] + 0.01 * variances.mean(), rtol=1e-4)


@pytest.mark.parametrize("scale", [60.0, 0.01])
def test_the_outputs_do_not_depend_on_the_inputs_scale(scale: float):
    torch.testing.assert_close(
        scale * whitening_filters([smooth_images(scale)], 7, 5, 2), whitening_filters([smooth_images()], 7, 5, 2),
        rtol=1e-3, atol=1e-4,
    )  # fmt: skip


def test_images_of_one_colour_give_finite_filters():
    assert whitening_filters([torch.ones(3, 3, 11, 11)], 96, 11, 5).isfinite().all()


def test_more_filters_than_axes_are_refused():
    assert len(whitening_filters([torch.ones(3, 3, 4, 4)], 6, 1, 1)) == 6
    with pytest.raises(ValueError, match="^count: 7, expected at most 6 filters of 1x1"):
        whitening_filters([torch.ones(3, 3, 4, 4)], 7, 1, 1)
