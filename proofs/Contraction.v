(* A contraction that is disturbed at each step: how far its orbit stays from the fixed point. *)
From Coq Require Import Reals Lia Lra Rlimit.
Open Scope R_scope.

(* Where x_(n+1) is T x_n up to delta: d = distance to the fixed point of T. *)
Theorem contraction_estimate (d : nat -> R) rho delta :
  0 <= rho < 1 -> (forall n, d (S n) <= rho * d n + delta) ->
  forall n, d n <= rho ^ n * d 0%nat + delta * (1 - rho ^ n) / (1 - rho).
Proof.
  intros R H n. induction n as [|n IH].
  - simpl. apply Req_le. field. lra.
  - apply Rle_trans with (1 := H n).
    apply Rmult_le_compat_l with (r := rho) in IH; [|lra].
    replace (rho ^ S n * d 0%nat + delta * (1 - rho ^ S n) / (1 - rho))
      with (rho * (rho ^ n * d 0%nat + delta * (1 - rho ^ n) / (1 - rho)) + delta)
      by (simpl; field; lra).
    lra.
Qed.

Theorem contraction_tight (d : nat -> R) rho delta :
  rho < 1 -> (forall n, d (S n) = rho * d n + delta) ->
  forall n, d n = rho ^ n * d 0%nat + delta * (1 - rho ^ n) / (1 - rho).
Proof.
  intros R H n. induction n as [|n IH].
  - simpl. field. lra.
  - rewrite H, IH. simpl. field. lra.
Qed.

Theorem contraction_floor (d : nat -> R) rho delta :
  0 <= rho < 1 -> 0 <= delta -> (forall n, d (S n) <= rho * d n + delta) ->
  forall n, d n <= rho ^ n * d 0%nat + delta / (1 - rho).
Proof.
  intros R D H n. apply Rle_trans with (1 := contraction_estimate d rho delta R H n).
  apply Rplus_le_compat_l. unfold Rdiv.
  apply Rmult_le_compat_r; [apply Rlt_le, Rinv_0_lt_compat; lra|].
  pose proof (pow_le rho n (proj1 R)). nra.
Qed.

Theorem noise_floor (d : nat -> R) rho delta eps :
  0 <= rho < 1 -> 0 <= delta -> (forall n, d (S n) <= rho * d n + delta) -> 0 < eps ->
  exists n0, forall n, (n0 <= n)%nat -> d n <= delta / (1 - rho) + eps.
Proof.
  intros R D H E.
  set (m := Rmax 1 (d 0%nat)).
  assert (M : 1 <= m) by apply Rmax_l. assert (M' : d 0%nat <= m) by apply Rmax_r.
  destruct (pow_lt_1_zero rho) with (y := eps / m) as [n0 N].
  - rewrite Rabs_pos_eq; lra.
  - apply Rdiv_lt_0_compat; lra.
  - exists n0. intros n L. specialize (N n L).
    rewrite Rabs_pos_eq in N by (apply pow_le; lra).
    apply Rle_trans with (1 := contraction_floor d rho delta R D H n).
    pose proof (pow_le rho n (proj1 R)) as P.
    apply Rmult_lt_compat_r with (r := m) in N; [|lra].
    replace (eps / m * m) with eps in N by (field; lra). nra.
Qed.

(* The orbit of any map of any metric space that contracts towards y. *)
Theorem noisy_orbit (X : Metric_Space) (T : Base X -> Base X) (y : Base X) (x : nat -> Base X) rho delta :
  0 <= rho < 1 -> 0 <= delta -> T y = y ->
  (forall u v, dist X (T u) (T v) <= rho * dist X u v) ->
  (forall n, dist X (x (S n)) (T (x n)) <= delta) ->
  forall n, dist X (x n) y <= rho ^ n * dist X (x 0%nat) y + delta / (1 - rho).
Proof.
  intros R D F C N n. apply (contraction_floor (fun n => dist X (x n) y)); try assumption.
  intros k. simpl. pose proof (dist_tri X (x (S k)) y (T (x k))) as A.
  pose proof (C (x k) y) as B. rewrite F in B. specialize (N k). lra.
Qed.

Theorem fixed_point_unique (X : Metric_Space) (T : Base X -> Base X) rho y z :
  rho < 1 -> (forall u v, dist X (T u) (T v) <= rho * dist X u v) -> T y = y -> T z = z -> y = z.
Proof.
  intros R C Y Z. apply (dist_refl X). specialize (C y z). rewrite Y, Z in C.
  pose proof (dist_pos X y z). nra.
Qed.
