//! Products of the reference paths, in the precision that was asked for.
//!
//! On an NVIDIA GPU burn multiplies f32 matrices on tensor cores, which round them to 10 bits
//! first (TF32). A model that computes in f32 gets f32 products.

use burn::tensor::{DType, Tensor};

/// `lhs x rhs`, with nothing rounded on the way where `precision` is f32.
///
/// `precision` is the model's number format: operands of a wider one may be rounded to it.
pub(crate) fn product<const D: usize>(
    lhs: Tensor<D>,
    rhs: Tensor<D>,
    precision: DType,
) -> Tensor<D> {
    #[cfg(feature = "cuda")]
    if precision == DType::F32 && lhs.dtype() == DType::F32 {
        return in_f32(lhs, rhs);
    }
    #[cfg(not(feature = "cuda"))]
    let _ = precision;
    lhs.matmul(rhs)
}

/// A product without tensor cores on a GPU; burn's own elsewhere.
#[cfg(feature = "cuda")]
fn in_f32<const D: usize>(lhs: Tensor<D>, rhs: Tensor<D>) -> Tensor<D> {
    use burn_cubecl::{Cube, kernel::matmul::init_matmul_output};
    use cubek::cubecl::prelude::Scalar;
    use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
    use cubek::matmul::multi_level::Strategy;
    use cubek::matmul::routine::BlueprintStrategy;
    use cubek::std::InputBinding;

    let element = f32::elem_type_native();
    let (Ok(left), Ok(right)) =
        (lhs.clone().try_into_primitive::<Cube>(), rhs.clone().try_into_primitive::<Cube>())
    else {
        return lhs.matmul(rhs);
    };
    let output = init_matmul_output(&left, &right, DType::F32);
    let client = output.client.clone();
    let globals = MatmulGlobalElems { lhs: element, rhs: element, out: element };
    cubek::matmul::launch::launch_ref(
        &Strategy::SimpleUnit(BlueprintStrategy::default()).into(),
        &client,
        InputBinding::new(left.binding(), element),
        InputBinding::new(right.binding(), element),
        output.clone().binding(),
        &mut MatmulElems::from_globals(&globals),
    )
    .expect("a product without tensor cores runs on every GPU");
    Tensor::from_primitive::<Cube>(output)
}
