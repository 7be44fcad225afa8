"""The Hessian distance measure: v_iᵀ H_i⁺ v_i per example and layer, exactly where that is possible."""
