(* Power-of-two quantisation, as in fieldprint/quantize.py: c = RNE(x / 2^e), |c| <= 127, never clamped. *)
From Coq Require Import Reals ZArith List Lia Lra.
From Flocq Require Import Core.
Import ListNotations.
Open Scope R_scope.

Notation pow2 := (bpow radix2).

Definition code (x : R) (e : Z) : Z := ZnearestE (x * pow2 (- e)).
Definition value (c e : Z) : R := IZR c * pow2 e.
Definition fits (x : R) (e : Z) : Prop := (Z.abs (code x e) <= 127)%Z.

Theorem quantize_is_round x e : value (code x e) e = round radix2 (FIX_exp e) ZnearestE x.
Proof. reflexivity. Qed.

Theorem quantize_error x e : Rabs (x - value (code x e) e) <= pow2 (e - 1).
Proof.
  rewrite quantize_is_round, Rabs_minus_sym.
  apply Rle_trans with (/ 2 * ulp radix2 (FIX_exp e) x).
  - apply error_le_half_ulp, FIX_exp_valid.
  - rewrite ulp_FIX. unfold Zminus. rewrite bpow_plus. simpl. lra.
Qed.

Lemma tie k : ZnearestE (IZR k + / 2) = if Z.even k then k else (k + 1)%Z.
Proof.
  unfold Znearest. rewrite (Zfloor_imp k) by (rewrite plus_IZR; lra).
  rewrite Rcompare_Eq by lra.
  rewrite (Zceil_imp (k + 1)) by (replace (k + 1 - 1)%Z with k by lia; rewrite plus_IZR; lra).
  destruct (Z.even k); reflexivity.
Qed.

Theorem quantize_error_tight e : exists x, Rabs (x - value (code x e) e) = pow2 (e - 1).
Proof.
  exists (pow2 (e - 1)).
  assert (H : code (pow2 (e - 1)) e = 0%Z).
  { unfold code. rewrite <- bpow_plus. replace (e - 1 + - e)%Z with (-1)%Z by lia.
    replace (pow2 (-1)) with (IZR 0 + / 2) by (simpl; lra). apply tie. }
  rewrite H. unfold value. rewrite Rmult_0_l, Rminus_0_r.
  apply Rabs_pos_eq, bpow_ge_0.
Qed.

Theorem quantize_exact c e : code (value c e) e = c.
Proof.
  unfold code, value. rewrite Rmult_assoc, <- bpow_plus.
  replace (e + - e)%Z with 0%Z by lia. simpl. rewrite Rmult_1_r. apply Zrnd_IZR, valid_rnd_N.
Qed.

Theorem quantize_idempotent x e : value (code (value (code x e) e) e) e = value (code x e) e.
Proof. now rewrite quantize_exact. Qed.

Lemma unscale x e : x = x * pow2 (- e) * pow2 e.
Proof.
  rewrite Rmult_assoc, <- bpow_plus.
  replace (- e + e)%Z with 0%Z by lia. simpl. lra.
Qed.

(* Half even: 127.5 would become 128, so the bound is strict. *)
Theorem fits_iff x e : fits x e <-> Rabs x < 255 / 2 * pow2 e.
Proof.
  unfold fits. pose proof (bpow_gt_0 radix2 e) as P.
  pose proof (valid_rnd_N (fun t => negb (Z.even t))) as V.
  rewrite (unscale x e) at 2. unfold code. set (s := x * pow2 (- e)).
  rewrite Rabs_mult, (Rabs_pos_eq (pow2 e)) by lra.
  split; intros H.
  - apply Rmult_lt_compat_r; [exact P|]. apply Rnot_le_lt. intros B.
    assert (U : ZnearestE (255 / 2) = 128%Z)
      by (replace (255 / 2) with (IZR 127 + / 2) by lra; apply tie).
    assert (D : ZnearestE (- (255 / 2)) = (-128)%Z)
      by (replace (- (255 / 2)) with (IZR (-128) + / 2) by lra; apply tie).
    destruct (Rle_or_lt 0 s) as [S | S].
    + rewrite Rabs_pos_eq in B by exact S.
      apply (@Zrnd_le _ V) in B. lia.
    + rewrite Rabs_left in B by exact S.
      assert (B' : s <= - (255 / 2)) by lra.
      apply (@Zrnd_le _ V) in B'. lia.
  - apply Rmult_lt_reg_r in H; [|exact P].
    pose proof (Znearest_half (fun t => negb (Z.even t)) s) as N.
    apply Rabs_lt_inv in H. apply Rabs_le_inv in N.
    enough (-128 < ZnearestE s < 128)%Z by lia.
    split; apply lt_IZR; lra.
Qed.

Lemma fits_mono x e e' : (e <= e')%Z -> fits x e -> fits x e'.
Proof.
  rewrite !fits_iff. intros L H. pose proof (bpow_le radix2 _ _ L). lra.
Qed.

(* channel_exponents: frexp writes the largest |x| as m * 2^k with 1/2 <= m < 1. *)
Theorem frexp_rule_least m k :
  / 2 <= m < 1 ->
  let e := if Rlt_dec m (255 / 2 / 128) then (k - 7)%Z else (k - 6)%Z in
  fits (m * pow2 k) e /\ forall e', (e' < e)%Z -> ~ fits (m * pow2 k) e'.
Proof.
  intros M. cbv zeta.
  assert (A : Rabs (m * pow2 k) = m * pow2 k)
    by (apply Rabs_pos_eq, Rmult_le_pos; [lra | apply bpow_ge_0]).
  assert (S : forall i, (0 <= i)%Z -> pow2 k = pow2 i * pow2 (k - i))
    by (intros i _; rewrite <- bpow_plus; f_equal; lia).
  pose proof (S 6%Z ltac:(lia)) as S6. pose proof (S 7%Z ltac:(lia)) as S7.
  pose proof (S 8%Z ltac:(lia)) as S8.
  change (pow2 6) with 64 in S6. change (pow2 7) with 128 in S7. change (pow2 8) with 256 in S8.
  pose proof (bpow_gt_0 radix2 k) as P.
  destruct (Rlt_dec m (255 / 2 / 128)) as [L | L].
  - split.
    + apply fits_iff. rewrite A, S7.
      pose proof (bpow_gt_0 radix2 (k - 7)). nra.
    + intros e' E F. apply (fits_mono _ _ (k - 8)) in F; [|lia].
      apply fits_iff in F. rewrite A, S8 in F.
      pose proof (bpow_gt_0 radix2 (k - 8)). nra.
  - split.
    + apply fits_iff. rewrite A, S6.
      pose proof (bpow_gt_0 radix2 (k - 6)). nra.
    + intros e' E F. apply (fits_mono _ _ (k - 7)) in F; [|lia].
      apply fits_iff in F. rewrite A, S7 in F.
      pose proof (bpow_gt_0 radix2 (k - 7)). nra.
Qed.

(* The exponent of a whole channel: the least from `low` on with which no code would clamp. *)
Definition channel_exponent (low : Z) (xs : list R) (e : Z) : Prop :=
  (low <= e)%Z /\ Forall (fun x => fits x e) xs /\
  forall e', (low <= e' < e)%Z -> ~ Forall (fun x => fits x e') xs.

Lemma channel_exponent_unique low xs e e' :
  channel_exponent low xs e -> channel_exponent low xs e' -> e = e'.
Proof.
  intros (L & F & M) (L' & F' & M').
  destruct (Z.lt_trichotomy e e') as [H | [H | H]]; [|exact H|].
  - now elim (M' e); [lia |].
  - now elim (M e'); [lia |].
Qed.

Lemma value_fits c e e' : fits (value c e) e' <-> IZR (Z.abs c) * pow2 e < 255 / 2 * pow2 e'.
Proof.
  rewrite fits_iff. unfold value.
  now rewrite Rabs_mult, (Rabs_pos_eq (pow2 e)), <- abs_IZR by apply bpow_ge_0.
Qed.

Lemma quantized_fits x e : fits (value (code x e) e) (e - 1) -> fits x (e - 1).
Proof.
  rewrite value_fits, fits_iff.
  assert (S : pow2 e = 2 * pow2 (e - 1))
    by (change 2 with (pow2 1); rewrite <- bpow_plus; f_equal; lia).
  pose proof (bpow_gt_0 radix2 (e - 1)) as P. set (c := code x e). intros H.
  assert (C : (Z.abs c <= 63)%Z).
  { enough (Z.abs c < 64)%Z by lia. apply lt_IZR. rewrite S in H. nra. }
  pose proof (quantize_error x e) as E. fold c in E.
  assert (V : Rabs (value c e) <= 63 * pow2 e).
  { unfold value. rewrite Rabs_mult, (Rabs_pos_eq (pow2 e)), <- abs_IZR by apply bpow_ge_0.
    apply Rmult_le_compat_r; [apply bpow_ge_0 | now apply IZR_le]. }
  pose proof (Rabs_triang (x - value c e) (value c e)) as T.
  replace (x - value c e + value c e) with x in T by ring. lra.
Qed.

Theorem requantize_channel low xs e :
  channel_exponent low xs e ->
  let ys := map (fun x => value (code x e) e) xs in
  channel_exponent low ys e /\ map (fun y => code y e) ys = map (fun x => code x e) xs.
Proof.
  intros (L & F & M). cbv zeta. split.
  - split; [exact L | split].
    + apply Forall_map. apply Forall_impl with (2 := F). intros x H.
      unfold fits. now rewrite quantize_exact.
    + intros e' B H. rewrite Forall_map in H.
      apply (M (e - 1)%Z); [lia|]. apply Forall_impl with (2 := H). intros x G.
      apply quantized_fits. apply fits_mono with (2 := G). lia.
  - rewrite map_map. apply map_ext. intros x. apply quantize_exact.
Qed.

(* The rule of channel_exponents picks that exponent, from the largest value alone. *)
Theorem channel_exponents_right low xs m k :
  / 2 <= m < 1 -> In (m * pow2 k) (map Rabs xs) -> (forall x, In x xs -> Rabs x <= m * pow2 k) ->
  channel_exponent low xs (Z.max low (if Rlt_dec m (255 / 2 / 128) then k - 7 else k - 6)%Z).
Proof.
  intros M I L. pose proof (frexp_rule_least m k M) as [F N].
  set (e := if Rlt_dec m (255 / 2 / 128) then (k - 7)%Z else (k - 6)%Z) in *.
  assert (P : 0 <= m * pow2 k) by (apply Rmult_le_pos; [lra | apply bpow_ge_0]).
  split; [lia | split].
  - apply Forall_forall. intros x X. apply (fits_mono _ e); [lia|].
    rewrite fits_iff in *. rewrite Rabs_pos_eq in F by exact P. specialize (L x X). lra.
  - intros e' E H. apply (N e'); [lia|]. apply in_map_iff in I as (x & X & I).
    rewrite Forall_forall in H. specialize (H x I).
    rewrite fits_iff in *. rewrite <- X at 1. now rewrite Rabs_Rabsolu.
Qed.

Theorem channel_of_zeros low n : channel_exponent low (repeat 0 n) low.
Proof.
  split; [lia | split; [|lia]]. apply Forall_forall. intros x X.
  apply repeat_spec in X as ->. rewrite fits_iff, Rabs_R0.
  pose proof (bpow_gt_0 radix2 low). lra.
Qed.
