(* Every code times its step is a number of bfloat16, of float16 and of float32: serving loses nothing. *)
From Coq Require Import Reals ZArith Lia Lra.
From Flocq Require Import Core IEEE754.BinarySingleNaN IEEE754.Binary.
From Fieldprint Require Import Quantize.
Open Scope R_scope.

(* Significant bits, least exponent (of a subnormal's last bit), greatest exponent. *)
Notation bf16_exp := (FLT_exp (-133) 8).
Notation fp16_exp := (FLT_exp (-24) 11).
Notation fp32_exp := (FLT_exp (-149) 24).

Lemma in_format emin prec c e :
  (7 <= prec)%Z -> (emin <= e)%Z -> (Z.abs c <= 127)%Z ->
  generic_format radix2 (FLT_exp emin prec) (value c e).
Proof.
  intros P E C. apply generic_format_FLT. exists (Float radix2 c e); [reflexivity | | exact E].
  simpl. apply Z.le_lt_trans with (1 := C). apply Z.lt_le_trans with (2 ^ 7)%Z; [reflexivity|].
  now apply Z.pow_le_mono_r.
Qed.

Theorem bf16_exact c e :
  (Z.abs c <= 127)%Z -> (-133 <= e)%Z -> generic_format radix2 bf16_exp (value c e).
Proof. intros. apply in_format; lia. Qed.

Theorem fp16_exact c e :
  (Z.abs c <= 127)%Z -> (-24 <= e)%Z -> generic_format radix2 fp16_exp (value c e).
Proof. intros. apply in_format; lia. Qed.

Theorem fp32_exact c e :
  (Z.abs c <= 127)%Z -> (-149 <= e)%Z -> generic_format radix2 fp32_exp (value c e).
Proof. intros. apply in_format; lia. Qed.

(* The same with the bound of the exponent from above: there is a finite IEEE 754 number of that value. *)
Lemma is_float prec emax (Hp : Prec_gt_0 prec) (He : Prec_lt_emax prec emax) c e :
  (7 <= prec)%Z -> (3 - emax - prec <= e <= emax - 7)%Z -> (Z.abs c <= 127)%Z ->
  exists f : binary_float prec emax, is_finite prec emax f = true /\ B2R prec emax f = value c e.
Proof.
  intros P E C. exists (binary_normalize prec emax Hp He mode_NE c e false).
  pose proof (binary_normalize_correct prec emax Hp He mode_NE c e false) as N.
  change (F2R (Float radix2 c e)) with (value c e) in N.
  change (SpecFloat.fexp prec emax) with (FLT_exp (3 - emax - prec) prec) in N.
  rewrite round_generic in N.
  2: apply valid_rnd_round_mode.
  2: apply in_format; lia.
  rewrite Rlt_bool_true in N; [tauto|].
  unfold value. rewrite Rabs_mult, (Rabs_pos_eq (pow2 e)), <- abs_IZR by apply bpow_ge_0.
  apply IZR_le in C. pose proof (bpow_gt_0 radix2 e).
  apply Rlt_le_trans with (pow2 (7 + e)).
  - rewrite bpow_plus. change (pow2 7) with 128. nra.
  - apply bpow_le. lia.
Qed.

Theorem bf16_number c e :
  (Z.abs c <= 127)%Z -> (-133 <= e <= 121)%Z ->
  exists f : binary_float 8 128, is_finite 8 128 f = true /\ B2R 8 128 f = value c e.
Proof. intros. apply (is_float 8 128 eq_refl eq_refl); lia. Qed.

Theorem fp16_number c e :
  (Z.abs c <= 127)%Z -> (-24 <= e <= 9)%Z ->
  exists f : binary_float 11 16, is_finite 11 16 f = true /\ B2R 11 16 f = value c e.
Proof. intros. apply (is_float 11 16 eq_refl eq_refl); lia. Qed.

Theorem fp32_number c e :
  (Z.abs c <= 127)%Z -> (-149 <= e <= 121)%Z ->
  exists f : binary_float 24 128, is_finite 24 128 f = true /\ B2R 24 128 f = value c e.
Proof. intros. apply (is_float 24 128 eq_refl eq_refl); lia. Qed.

(* [-24, 9] cannot be widened: 2^-25 is not in float16, and 127 * 2^10 is above its largest number. *)
Theorem fp16_range_sharp :
  ~ generic_format radix2 fp16_exp (value 1 (-25)) /\
  forall f : binary_float 11 16, B2R 11 16 f < value 127 10.
Proof.
  split.
  - intros G. apply FLT_format_generic in G; [|reflexivity].
    destruct G as [[m e] V M E]. simpl in M, E. unfold value, F2R in V. simpl Fnum in V. simpl Fexp in V.
    assert (K : pow2 e = IZR (2 ^ (e + 25)) * pow2 (-25)).
    { change (2 ^ (e + 25))%Z with (radix2 ^ (e + 25))%Z. rewrite IZR_Zpower by lia.
      rewrite <- bpow_plus. f_equal. lia. }
    rewrite K, <- Rmult_assoc, <- mult_IZR in V.
    apply Rmult_eq_reg_r, eq_IZR in V; [|apply Rgt_not_eq, bpow_gt_0].
    replace (e + 25)%Z with (1 + (e + 24))%Z in V by lia.
    rewrite Z.pow_add_r in V by lia. lia.
  - intros f. apply Rle_lt_trans with (Rabs (B2R 11 16 f)); [apply Rle_abs|].
    apply Rlt_le_trans with (pow2 16); [apply abs_B2R_lt_emax|].
    unfold value. change (pow2 16) with 65536. change (pow2 10) with 1024. lra.
Qed.

(* Converting to a serving dtype rounds nothing, in whatever direction it would round. *)
Theorem serving_rounds_nothing rnd (V : Valid_rnd rnd) c e :
  (Z.abs c <= 127)%Z -> (-24 <= e <= 9)%Z ->
  round radix2 bf16_exp rnd (value c e) = value c e /\
  round radix2 fp16_exp rnd (value c e) = value c e /\
  round radix2 fp32_exp rnd (value c e) = value c e.
Proof.
  intros C E. repeat split; apply round_generic; try exact V; apply in_format; lia.
Qed.

(* quantize scales in float32, where x / 2^e may be subnormal and round; its code is the exact one all the same. *)
Theorem scaling_in_fp32 x e :
  generic_format radix2 fp32_exp x ->
  ZnearestE (round radix2 fp32_exp ZnearestE (x * pow2 (- e))) = code x e.
Proof.
  intros G. unfold code. set (s := x * pow2 (- e)).
  assert (V : Valid_exp fp32_exp) by (apply FLT_exp_valid; reflexivity).
  destruct (Rlt_or_le (Rabs s) (pow2 (-126))) as [S | S].
  - assert (H : pow2 (-126) < / 2)
      by (replace (/ 2) with (pow2 (-1)) by (simpl; lra); apply bpow_lt; lia).
    assert (R : Rabs (round radix2 fp32_exp ZnearestE s) <= pow2 (-126)).
    { apply abs_round_le_generic; [exact V | apply valid_rnd_N | | lra].
      apply generic_format_FLT_bpow; [reflexivity | lia]. }
    transitivity 0%Z; [|symmetry]; apply Znearest_imp; rewrite Rminus_0_r; lra.
  - f_equal. apply round_generic; [apply valid_rnd_N|].
    apply FLT_format_generic in G; [|reflexivity].
    destruct G as [[m k] X M K]. simpl in M, K.
    assert (F : s = F2R (Float radix2 m (k - e))).
    { unfold s. rewrite X. unfold F2R. simpl Fnum. simpl Fexp.
      rewrite Rmult_assoc, <- bpow_plus. f_equal. }
    apply generic_format_F2R' with (Float radix2 m (k - e)); [now symmetry|].
    intros N. unfold cexp, FLT_exp. simpl Fexp.
    assert (L : (-126 < mag radix2 s)%Z).
    { apply mag_gt_bpow. exact S. }
    assert (U : (mag radix2 s <= 24 + (k - e))%Z).
    { apply mag_le_bpow; [exact N|]. rewrite F.
      unfold F2R. simpl Fnum. simpl Fexp.
      rewrite Rabs_mult, (Rabs_pos_eq (pow2 (k - e))), bpow_plus by apply bpow_ge_0.
      apply Rmult_lt_compat_r; [apply bpow_gt_0|].
      rewrite <- abs_IZR. change (pow2 24) with (IZR (2 ^ 24)). now apply IZR_lt. }
    lia.
Qed.
